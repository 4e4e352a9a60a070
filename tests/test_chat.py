"""`tokenflow chat`: answers as the library gives them, conversations, and what it says to what is no picture."""

import io
import sys

import pytest
from PIL import Image

from tests.understanding.test_image_to_text import make
from tests.understanding.words import llama_words
from tokenflow import ImageToText
from tokenflow.cli import main

QUESTIONS = ("what colour is the star?", "how many squares are there?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = make(llama_words(tmp_path_factory.mktemp("words")), "vicuna_v1")
    return model.save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def picture(tmp_path):
    return paint(tmp_path / "picture.png", (200, 40, 40))


def paint(path, color):
    Image.new("RGB", (40, 30), color).save(path)
    return path


def chat(*words, model):
    return main(["chat", *map(str, words), "--model", str(model), "--device", "cpu", "--max_new_tokens", "6"])


def test_one_question_gets_the_answer_alone(folder, picture, capsys):
    assert chat(picture, QUESTIONS[0], model=folder) == 0
    (expected,) = ImageToText.from_pretrained(folder).answer([picture], [QUESTIONS[0]], max_new_tokens=6)
    assert expected and capsys.readouterr().out.strip() == expected


def test_several_questions_are_one_conversation(folder, picture, capsys):
    assert chat(picture, *QUESTIONS, model=folder) == 0
    conversation = ImageToText.from_pretrained(folder).chat(max_new_tokens=6)
    answers = [conversation.say(QUESTIONS[0], [picture]), conversation.say(QUESTIONS[1])]
    said = capsys.readouterr().out
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert f"> {question}\n" in said and answer in said


def test_questions_come_from_standard_input_up_to_an_empty_line(folder, picture, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n"))
    assert chat(picture, model=folder) == 0
    (expected,) = ImageToText.from_pretrained(folder).answer([picture], [QUESTIONS[0]], max_new_tokens=6)
    assert expected and capsys.readouterr().out.strip() == expected


class Pieces(io.StringIO):
    """Remembers what was there whenever it was flushed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def flush(self):
        self.seen.append(self.getvalue())


def test_pieces_are_shown_as_they_are_made(folder, picture, monkeypatch):
    out = Pieces()
    monkeypatch.setattr(sys, "stdout", out)
    assert chat(picture, QUESTIONS[0], model=folder) == 0
    pieces = list(ImageToText.from_pretrained(folder).chat(max_new_tokens=6).ask(QUESTIONS[0], [picture]))
    assert len(pieces) > 1
    assert out.seen[: len(pieces)] == ["".join(pieces[: number + 1]) for number in range(len(pieces))]


def test_a_prompt_is_for_people_only(folder, picture, capsys, monkeypatch):
    for person in (True, False):
        terminal = io.StringIO(f"{QUESTIONS[0]}\n")
        terminal.isatty = lambda person=person: person
        monkeypatch.setattr(sys, "stdin", terminal)
        assert chat(picture, model=folder) == 0
        said = capsys.readouterr()
        assert ("> " in said.err) == person and ">" not in said.out


def test_all_pictures_belong_to_the_first_question(folder, picture, tmp_path, capsys):
    other = paint(tmp_path / "other.png", (0, 200, 40))
    assert chat(picture, *QUESTIONS, "--image", other, "--image", picture, model=folder) == 0
    conversation = ImageToText.from_pretrained(folder).chat(max_new_tokens=6)
    answers = [conversation.say(QUESTIONS[0], [picture, other, picture]), conversation.say(QUESTIONS[1])]
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert said == [f"> {QUESTIONS[0]}", answers[0], f"> {QUESTIONS[1]}", answers[1]]


def test_questions_may_stand_behind_options(folder, picture, capsys):
    assert chat(picture, *QUESTIONS, "--seed", 1, model=folder) == 0
    first = capsys.readouterr().out
    assert chat(picture, "--seed", 1, *QUESTIONS, model=folder) == 0
    assert capsys.readouterr().out == first


def test_draws_follow_the_seed_and_a_system_message_is_read(folder, picture, capsys):
    options = ("--temperature", 5, "--top_p", 0.9, "--system", "Answer in one word.")
    said = []
    for seed in (0, 0, 1):
        assert chat(picture, QUESTIONS[0], *options, "--seed", seed, model=folder) == 0
        said.append(capsys.readouterr().out.strip())
    expected = ImageToText.from_pretrained(folder).chat(
        system="Answer in one word.", max_new_tokens=6, temperature=5.0, top_p=0.9, seed=1
    )
    assert said[0] == said[1] != said[2] == expected.say(QUESTIONS[0], [picture])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["https://example.org/a.png", QUESTIONS[0]], "is an address; expected a file. Download it first"),
        (["gone.png", QUESTIONS[0]], "no such file; expected a picture"),
        ([".", QUESTIONS[0]], "a folder; expected a picture file"),
        (["text.png", QUESTIONS[0]], "text.png is no picture"),
        (["a.png", QUESTIONS[0], "--image", "text.png"], "text.png is no picture"),
        (["a.png", QUESTIONS[0], " "], "question 2 is empty"),
        (["a.png", QUESTIONS[0], "--temperature", "-1"], "temperature is -1.0"),
        (["a.png", QUESTIONS[0], "--top_p", "0"], "top_p 0.0"),
        (["a.png", QUESTIONS[0], "--max_new_tokens", "0"], "max_new_tokens is 0; expected 1 or more"),
        (["a.png", QUESTIONS[0]], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_one_line_before_anything_is_loaded(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    paint(tmp_path / "a.png", (0, 0, 0))
    assert main(["chat", *arguments, "--model", str(tmp_path / "nowhere"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said

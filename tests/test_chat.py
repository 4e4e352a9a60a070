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
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), (200, 40, 40)).save(path)
    return path


def chat(*words, model):
    return main(["chat", *map(str, words), "--model", str(model), "--device", "cpu", "--max_new_tokens", "6"])


def test_one_question_gets_the_answer_alone(folder, picture, capsys):
    assert chat(picture, QUESTIONS[0], model=folder) == 0
    (expected,) = ImageToText.from_pretrained(folder).answer([picture], [QUESTIONS[0]], max_new_tokens=6)
    assert capsys.readouterr().out.strip() == expected


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
    assert capsys.readouterr().out.strip() == expected


def test_what_is_no_picture_is_refused_in_one_line(folder, tmp_path, capsys):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for image, message in (
        ("https://example.org/a.png", "is an address"),
        ("gone.png", "no such file"),
        (text, "text.png"),
    ):
        assert chat(image, QUESTIONS[0], model=folder) == 2
        said = capsys.readouterr().err.strip()
        assert message in said and len(said.splitlines()) == 1

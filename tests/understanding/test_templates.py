"""Templates: the written conversation, its tokens, and what of them is learned."""

import pytest

from tests.understanding.words import llama_words, qwen_words
from tokenflow.understanding.conversation_tokens import (
    IGNORE,
    IMAGE_TOKEN,
    ConversationTokenizer,
    check_supervision,
    report,
    show,
)
from tokenflow.understanding.templates import IMAGE, render, segments

ASKED = (("user", f"what colour is the star? {IMAGE}"), ("assistant", " red. "), ("user", "Sure?"))
ANSWERED = (*ASKED, ("assistant", "Yes: a red star."))
WORDS = {"plain": llama_words, "vicuna_v1": llama_words, "qwen_2_5": qwen_words}


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    made = {}
    for words in (llama_words, qwen_words):
        made[words] = words(tmp_path_factory.mktemp("words"))
    return {name: ConversationTokenizer(made[words], name) for name, words in WORDS.items()}


def test_a_captioned_image_is_written_plainly():
    conversation = (("user", f"Describe it briefly.\n{IMAGE}"), ("assistant", "a red star "))
    assert render("plain", conversation) == "<image>a red star\n"
    assert render("plain", (("user", ""), ("assistant", "text alone"))) == "text alone\n"


def test_images_move_to_the_start_of_their_message_each_with_a_line():
    text = render("vicuna_v1", (("user", f"Compare {IMAGE} these{IMAGE}"),), system="")
    assert text == "USER: <image>\n<image>\nCompare  these ASSISTANT:"
    assert render("vicuna_v1", (("user", IMAGE),), system="") == "USER: <image> ASSISTANT:"


def test_the_system_message_is_given_or_left_out():
    assert render("qwen_2_5", ASKED[:1], system="Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert render("qwen_2_5", ASKED[:1], system="").startswith("<|im_start|>user\n<image>\n")
    with pytest.raises(ValueError, match="images belong to messages"):
        render("qwen_2_5", ASKED[:1], system=IMAGE)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ((), "no turns"),
        ((("assistant", "hello"),), "turn 0 is of 'assistant'"),
        ((("user", "a"), ("user", "b")), "turn 1 is of 'user'"),
        ((("user", "a"), ("assistant", "  ")), "turn 1, the assistant's, is empty"),
    ],
)
def test_bad_conversations_say_what_was_expected(conversation, message):
    with pytest.raises(ValueError, match=message):
        render("vicuna_v1", conversation)


def whole_text(reader, conversation):
    """The naive way: the text cut at images, every piece read by itself."""
    ids = list(reader.text_tokenizer("")["input_ids"])
    for number, piece in enumerate(render(reader.template, conversation).split(IMAGE)):
        ids += [IMAGE_TOKEN] * (number > 0) + reader.text_tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("conversation", [ASKED[:1], ANSWERED[:2], ANSWERED], ids=["asked", "answered", "two"])
def test_ids_are_those_of_the_whole_text(readers, name, conversation):
    assert readers[name](conversation).ids == whole_text(readers[name], conversation)


@pytest.mark.parametrize("name", ["vicuna_v1", "qwen_2_5"])
def test_answers_and_their_ends_are_learned_and_nothing_else(readers, name):
    reader = readers[name]
    tokens = reader(ANSWERED)
    assert tokens.num_images == 1 and len(tokens.ids) == len(tokens.labels)
    assert all(label in (IGNORE, token) for token, label in zip(*tokens, strict=True))
    learned = reader.text_tokenizer.decode([label for label in tokens.labels if label != IGNORE])
    end = {"vicuna_v1": "</s>", "qwen_2_5": "<|im_end|>"}[name]
    assert "".join(learned.split()) == f"red.{end}Yes:aredstar.{end}"
    assert sum(label in reader.end_tokens for label in tokens.labels) == 2


@pytest.mark.parametrize("name", ["vicuna_v1", "qwen_2_5"])
def test_a_prompt_is_the_beginning_of_the_answered_conversation(readers, name):
    prompt, whole = readers[name](ASKED), readers[name](ANSWERED)
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert whole.labels[len(prompt.ids)] == whole.ids[len(prompt.ids)]
    first = readers[name](ASKED[:1])
    assert prompt.ids[: len(first.ids)] == first.ids


def test_a_plain_caption_is_learned_to_its_last_line(readers):
    tokens = readers["plain"]((("user", IMAGE), ("assistant", "a red circle")))
    bos = readers["plain"].text_tokenizer.bos_token_id
    assert tokens.ids[:2] == [bos, IMAGE_TOKEN] and tokens.labels[:2] == [IGNORE, IGNORE]
    assert tokens.labels[2:] == tokens.ids[2:] and tokens.ids[-1] in readers["plain"].end_tokens


@pytest.mark.parametrize("name", WORDS)
def test_every_template_teaches_what_it_should(readers, name):
    found = check_supervision(readers[name])
    assert 0 < found.supervised < found.tokens
    assert "\x1b[32mA red circle." in found.text


def test_a_template_whose_end_is_no_token_is_refused(readers):
    with pytest.raises(ValueError, match=r"'<\|im_end\|>', which this text tokenizer reads as"):
        ConversationTokenizer(readers["vicuna_v1"].text_tokenizer, "qwen_2_5")


def test_a_template_that_teaches_the_question_is_caught(readers, monkeypatch):
    reader = readers["vicuna_v1"]
    monkeypatch.setattr(
        "tokenflow.understanding.conversation_tokens.segments",
        lambda *a, **k: [s._replace(supervised=True) for s in segments(*a, **k)],
    )
    with pytest.raises(ValueError, match="template 'vicuna_v1' teaches"):
        check_supervision(reader)


def test_a_conversation_that_teaches_nothing_is_shown(readers):
    reader = readers["qwen_2_5"]
    assert report(reader, [reader(ANSWERED)] * 2).tokens == 2 * len(reader(ANSWERED).ids)
    with pytest.raises(ValueError, match="teaches nothing"):
        report(reader, [reader(ANSWERED), reader(ASKED[:1])])
    assert "<image>" in show(reader, reader(ASKED))

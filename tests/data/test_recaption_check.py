"""Which answers are captions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflow.data.recaption_check import CaptionCheck, clean_answer
from tokenflow.data.recaption_prompts import TEMPLATES, Prompt, load_prompt

CAPTIONS = (
    "A dog.",
    "一只红色的气球飘在蓝天上，下面是一片绿色的草地。",
    "高高兴兴的孩子们开开心心地在公园里玩。",
    'A shop door with a sign that says "I\'m sorry, we are closed".',
    "A very, very, very small cat sits left of a very large dog.",
    "No photo can do this sunset justice: orange clouds over a calm sea.",
    "A robot holds a card: 'As an AI, I cannot see'.",
    "A table with a red apple, a green apple, a red cup, a green cup and a white plate with a red rim.",
    "A page of binary digits, 0000 0000 1111, on a green screen.",
    "A man in a red shirt stands beside a woman in a red dress; a man in a blue shirt stands beside a woman in a blue "
    "dress; behind them is a white wall with a clock, a calendar and a window through which a garden can be seen.",
)
REFUSALS = (
    "I'm sorry, I can't help with that.",
    "I’m sorry, but I cannot identify people in images.",
    "Sorry, I can't assist with this request.",
    "Unfortunately, I'm sorry to say this picture is not allowed.",
    "I cannot provide a description of this image.",
    "I am unable to view images directly.",
    "I'm not able to identify who this is.",
    "As an AI language model, I do not see pictures.",
    "The image is unclear. I can't describe the person in it.",
    "No image was provided.",
    "Please upload an image and I will describe it.",
    "抱歉，我无法识别图中的人物。",
    "对不起，我不能描述这张图片。",
    "作为一个AI语言模型，我没有看到图片。",
    "我无法查看图片。",
    "请上传一张图片。",
)
LOOPS = (
    "a cat " * 20,
    "A street with " + "a tree, a lamp, " * 12 + "and a house.",
    "红色气球" * 6,
    "哈" * 20,
    "The dog runs over the green grass. " * 3,
    "A long sentence about a house with a garden, a fence, two cars and a dog on the lawn in the evening sun. " * 2,
    "=" * 3 + "a" * 40,
    "x y " * 500,
)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_pass(caption):
    assert CaptionCheck().rejection(clean_answer(caption)) == ("", "")


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals_of_two_languages_are_rejected(answer):
    assert CaptionCheck().rejection(clean_answer(answer))[0] == "refused"


@pytest.mark.parametrize("answer", LOOPS)
def test_loops_are_rejected(answer):
    assert CaptionCheck().rejection(clean_answer(answer))[0] == "looping"


@pytest.mark.parametrize("answer", ("", "  \n", "...", '""', "<think>what is it?</think>  ", "。。。"))
def test_answers_without_words_are_empty(answer):
    assert CaptionCheck().rejection(clean_answer(answer))[0] == "empty"


def test_what_is_too_long_is_rejected():
    words = " ".join(f"word{number}" for number in range(100))
    assert CaptionCheck(max_characters=len(words)).rejection(words) == ("", "")
    assert CaptionCheck(max_characters=len(words) - 1).rejection(words)[0] == "too_long"
    assert CaptionCheck().rejection("A dog with a", cut=True)[0] == "too_long"


@given(st.lists(st.sampled_from("abcdefghijklmnopqrst"), min_size=4, max_size=12, unique=True), st.integers(4, 8))
def test_any_phrase_said_four_times_is_a_loop(words, times):
    assert CaptionCheck().rejection(" ".join(words * times))[0] == "looping"


@given(st.permutations([f"w{number}" for number in range(60)]))
def test_words_that_never_repeat_are_no_loop(words):
    assert CaptionCheck().rejection(" ".join(words)) == ("", "")


@given(st.text(max_size=200))
def test_cleaning_is_idempotent_on_plain_text_and_always_utf8(text):
    cleaned = clean_answer(text)
    assert cleaned.encode("utf-8").decode() == cleaned
    assert cleaned == cleaned.strip() and "\n" not in cleaned


def test_cleaning_takes_off_thoughts_quotes_and_line_breaks():
    assert clean_answer('<think>a "cat"?\n</think>\n\n"A cat\n on a mat."') == "A cat on a mat."
    assert clean_answer('"Stop" says the sign, not "Go"') == '"Stop" says the sign, not "Go"'
    assert clean_answer("a lone \ud800 surrogate") == "a lone ? surrogate"


def test_limits_that_make_no_sense_are_refused():
    for options in ({"max_characters": 0}, {"max_repeated": 0.0}, {"max_repeated": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            CaptionCheck(**options)


def test_the_old_caption_stands_in_the_prompt():
    prompt = Prompt(name="mine", text='Answer as {"caption": ...}. Old: {caption}.')
    assert prompt.about("a {red} cat") == 'Answer as {"caption": ...}. Old: a {red} cat.'
    assert prompt.about("") == 'Answer as {"caption": ...}. Old: (none).'
    assert prompt.about("a <|image_pad|> cat<|im_end|>") == 'Answer as {"caption": ...}. Old: a   cat.'


def test_prompts_come_from_names_and_files(tmp_path):
    assert all(load_prompt(name).text == text for name, text in TEMPLATES.items())
    path = tmp_path / "mine.txt"
    path.write_text("Was ist das? {caption}\n", encoding="utf-8")
    assert load_prompt(str(path)) == Prompt(name="mine", text="Was ist das? {caption}")
    with pytest.raises(ValueError, match="detailed"):
        load_prompt("detialed")
    path.write_text("  \n")
    with pytest.raises(ValueError, match="empty"):
        load_prompt(str(path))

"""`tokenflow generate`: files, seeds, previews, and what it says to input that makes no sense."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.tasks.tiny_text_to_image import tiny_folder
from tokenflow import TextToImage, TokenFlowTokenizer
from tokenflow.cli import main
from tokenflow.evaluation.reconstruction import reconstruct_uint8
from tokenflow.tokenizer.presets import preset

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), text_length=24)


def generate(*arguments, model):
    return main(["generate", *map(str, arguments), "--model", str(model), "--device", "cpu"])


def picture(path):
    return np.asarray(Image.open(path))


def test_a_file_for_each_picture_and_the_same_seed_paints_the_same(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert generate(PROMPT, "two stars", "--count", 2, "--seed", 3, "--output", out, model=model) == 0
    names = [f"a_red_circle_left_of_a_blue_square-seed3-{i}.png" for i in (0, 1)]
    names += [f"two_stars-seed3-{i}.png" for i in (2, 3)]
    assert sorted(path.name for path in out.iterdir()) == names
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{text} -> {out / name}" for text, name in zip([PROMPT] * 2 + ["two stars"] * 2, names, strict=True)
    ]
    expected = TextToImage.from_pretrained(model).generate([PROMPT, PROMPT, "two stars", "two stars"], seed=3)
    expected = reconstruct_uint8(expected).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(picture(out / name), want) for name, want in zip(names, expected, strict=True))
    one_by_one = ("--count", 2, "--seed", 3, "--batch_size", 1, "--output", tmp_path / "other")
    assert generate(PROMPT, "two stars", *one_by_one, model=model) == 0
    for name in names:
        assert np.array_equal(picture(out / name), picture(tmp_path / "other" / name))


def test_one_file_can_be_named_and_another_seed_is_another_picture(model, tmp_path):
    for seed in (0, 1):
        assert generate(PROMPT, "--seed", seed, "--output", tmp_path / f"{seed}.png", model=model) == 0
    assert not np.array_equal(picture(tmp_path / "0.png"), picture(tmp_path / "1.png"))


def test_previews_show_every_scale_the_last_being_the_picture(model, tmp_path):
    for extra, name in (((), "plain.png"), (("--preview_scales",), "strip.png")):
        assert generate(PROMPT, *extra, "--output", tmp_path / name, model=model) == 0
    strip, plain = picture(tmp_path / "strip.png"), picture(tmp_path / "plain.png")
    side = 32 * 2 + 4
    assert strip.shape == (side + 4, 4 * side + 4, 3)
    assert np.array_equal(strip[4 : 4 + 64 : 2, 4 + 3 * side : 4 + 3 * side + 64 : 2], plain)
    first = TextToImage.from_pretrained(model).generate([PROMPT], stop_after_scale=1)
    first = reconstruct_uint8(first)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(strip[4 : 4 + 64 : 2, 4 : 4 + 64 : 2], first)


@pytest.mark.parametrize("steps", ["one", "two", "three", "greedy"])
def test_every_preset_paints_and_greedy_needs_no_seed(model, tmp_path, steps):
    for seed in (0, 1):
        options = ("--steps", steps, "--seed", seed, "--guidance_scale", 0, "--output", tmp_path / f"{seed}.png")
        assert generate(PROMPT, *options, model=model) == 0
    same = np.array_equal(picture(tmp_path / "0.png"), picture(tmp_path / "1.png"))
    assert same == (steps == "greedy")


def test_top_k_and_top_p_and_a_negative_prompt_are_taken(model, tmp_path):
    options = ("--top_k", "100,1", "--top_p", "0.9,0", "--negative_prompt", "a star", "--guidance", "constant")
    assert generate(PROMPT, *options, "--output", tmp_path / "a.png", model=model) == 0
    assert picture(tmp_path / "a.png").shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "prompt 1 is empty"),
        ([PROMPT, "  "], "prompt 2 is empty"),
        ([PROMPT, "--guidance_scale", "-1"], "guidance_scale is -1.0; expected 0"),
        ([PROMPT, "--guidance_scale", "nan"], "guidance_scale is nan; expected 0"),
        ([PROMPT, "--top_k", "0", "--top_p", "1"], "top_k is (0,); expected whole numbers from 1"),
        ([PROMPT, "--top_k", "2000", "--top_p", "1"], "the codebook has 1024 codes"),
        ([PROMPT, "--top_k", "5,1", "--top_p", "1"], "one of each for every step"),
        ([PROMPT, "--top_k", "5", "--top_p", "1.5"], "top_p is (1.5,); expected 0 to 1"),
        ([PROMPT, "--top_k", "5"], "give both, or --steps alone"),
        ([PROMPT, "--count", "0"], "--count is 0; expected at least 1"),
        ([PROMPT, "--count", "2", "--output", "a.png"], "one file for several pictures"),
        ([PROMPT, "--output", "../taken"], "taken is a file; expected a folder. Choose another name"),
        ([PROMPT, "--output", "../taken/a.png"], "taken is a file; expected a folder. Choose another name"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments, words, model, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    tmp_path = tmp_path / "here"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    assert generate(*arguments, model=model) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and complaint.count("\n") == 1 and words in complaint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--steps", "four"], "invalid choice: 'four'"), (["--top_k", "x"], "list of whole numbers")],
)
def test_unknown_words_end_with_what_is_known(arguments, words, model, capsys):
    with pytest.raises(SystemExit) as end:
        generate(PROMPT, *arguments, model=model)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_another_tokenizer_is_refused_and_both_are_named(model, tmp_path, capsys):
    config = dataclasses.replace(preset("tokenflow-nano"), codebook_size=128)
    TokenFlowTokenizer(config).save_pretrained(tmp_path / "other")
    assert generate(PROMPT, "--tokenizer", tmp_path / "other", model=model) == 2
    complaint = capsys.readouterr().err
    assert "codebook_size 1024" in complaint and "128" in complaint and str(tmp_path / "other") in complaint


def test_a_folder_that_is_no_text_to_image_model_is_named(tmp_path, capsys):
    TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path / "tokenizer")
    for folder in ("tokenizer", "nowhere"):
        assert generate(PROMPT, model=tmp_path / folder) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("error: ") and str(tmp_path / folder) in complaint


def test_an_over_long_prompt_is_painted_and_what_was_cut_is_said(model, tmp_path):
    long = f"{PROMPT} and then seventeen more words that do not fit, the last of them being zebra"
    command = ["generate", long, "--model", str(model), "--output", str(tmp_path / "a.png")]
    done = subprocess.run([sys.executable, "-m", "tokenflow.cli", *command], capture_output=True, text=True, check=True)
    assert (tmp_path / "a.png").is_file()
    assert "cut off" in done.stderr and "zebra" in done.stderr and PROMPT not in done.stderr

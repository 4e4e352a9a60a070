"""An evaluation in its output folder: finished, refused, replaced; layouts, workers, and input that cannot be used."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.data import SourceConfig
from tokenflow.evaluation.partial import PartialFile
from tokenflow.tasks.tokenizer_evaluation import EvaluationData, EvaluationRecipe, evaluate, evaluate_into
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    return TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path_factory.mktemp("tokenizer") / "model")


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """ImageNet's names, flat: ILSVRC2012_val_0000000N.JPEG."""
    folder = tmp_path_factory.mktemp("flat")
    levels = np.random.default_rng(0)
    for number in range(7):
        pixels = levels.integers(0, 256, (40, 48 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", format="JPEG")
    return folder


def recipe(tokenizer, folder, *, save_every_seconds=60.0, data=(), **fields):
    sources = (SourceConfig(path=str(folder)),)
    return EvaluationRecipe(
        tokenizer=str(tokenizer),
        data=EvaluationData(sources=sources, **{"batch_size": 2, **dict(data)}),
        save_every_seconds=save_every_seconds,
        **fields,
    )


def test_a_finished_evaluation_is_not_taken_again_unless_asked(tokenizer, flat, tmp_path):
    first = evaluate_into(recipe(tokenizer, flat), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "result.json", "result.md"]
    written = (tmp_path / "result.json").stat().st_mtime_ns
    # Neither the place of the weights nor the size of the batches changes what is measured.
    moved = shutil.copytree(tokenizer, tmp_path / "moved")
    again = evaluate_into(recipe(moved, flat, data={"batch_size": 3, "num_workers": 1}), tmp_path)
    assert again == json.loads(json.dumps(first))
    assert (tmp_path / "result.json").stat().st_mtime_ns == written
    replaced = evaluate_into(recipe(tokenizer, flat), tmp_path, resume="none")
    assert (tmp_path / "result.json").stat().st_mtime_ns != written and replaced == first


def test_another_evaluation_in_the_folder_is_refused_and_the_difference_named(tokenizer, flat, tmp_path):
    evaluate_into(recipe(tokenizer, flat, data={"count": 3}), tmp_path)
    with pytest.raises(ValueError, match=r"holds another evaluation \(.*count was 3, is 7.*--resume none"):
        evaluate_into(recipe(tokenizer, flat), tmp_path)
    torch.manual_seed(1)
    other = TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"\(tokenizer was \w{32}, is \w{32}\)"):
        evaluate_into(recipe(other, flat, data={"count": 3}), tmp_path)
    assert evaluate_into(recipe(tokenizer, flat), tmp_path, resume="none")["protocol"]["images"] == 7


@pytest.fixture
def stopped(tokenizer, flat, tmp_path, monkeypatch):
    """A folder whose evaluation ended after the second of four batches."""
    save = PartialFile.save_if_due

    def save_and_stop(self, saved):
        save(self, saved)
        if saved().batches == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialFile, "save_if_due", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_into(recipe(tokenizer, flat, save_every_seconds=0), tmp_path)
    monkeypatch.undo()
    return tmp_path


def test_an_unfinished_evaluation_continues_to_the_same_result(tokenizer, flat, stopped, tmp_path_factory, caplog):
    unbroken = evaluate_into(recipe(tokenizer, flat), tmp_path_factory.mktemp("unbroken"))
    with caplog.at_level("INFO"):
        assert evaluate_into(recipe(tokenizer, flat), stopped) == unbroken
    assert "continuing after 4 of 7 images" in caplog.text
    assert not (stopped / "partial").exists()


def test_an_unfinished_evaluation_of_other_settings_is_refused_or_begun_anew(tokenizer, flat, stopped):
    for change in ({"rounding": "trunc"}, {"data": {"batch_size": 3}}):
        with pytest.raises(ValueError, match=r"another, unfinished evaluation \((rounding|batch_size) was"):
            evaluate_into(recipe(tokenizer, flat, **change), stopped)
    assert (stopped / "partial").is_dir()
    result = evaluate_into(recipe(tokenizer, flat, rounding="trunc"), stopped, resume="none")
    assert result["protocol"]["images"] == 7 and result["protocol"]["rounding"] == "trunc"
    assert not (stopped / "partial").exists()


def test_changed_pictures_are_another_evaluation(tokenizer, flat, tmp_path):
    shutil.copytree(flat, tmp_path / "some")
    evaluate_into(recipe(tokenizer, tmp_path / "some"), tmp_path / "out")
    first, *_, last = sorted((tmp_path / "some").iterdir())
    shutil.copy(last, first)
    with pytest.raises(ValueError, match=r"\(pictures was \w{32}, is \w{32}\)"):
        evaluate_into(recipe(tokenizer, tmp_path / "some"), tmp_path / "out")


def test_flat_and_class_folders_and_any_number_of_workers_give_the_same(tokenizer, flat, tmp_path):
    nested = tmp_path / "val"
    for number, path in enumerate(sorted(flat.iterdir())):
        # Sorted by folder, the order is another one; nothing is left out here.
        (nested / f"n{number % 3:08d}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, nested / f"n{number % 3:08d}" / path.name)
    one = evaluate_into(recipe(tokenizer, flat), tmp_path / "one")
    two = evaluate_into(recipe(tokenizer, nested, data={"num_workers": 2}), tmp_path / "two")
    assert one["metrics"] == two["metrics"] and one["codes_used"] == two["codes_used"]
    assert evaluate(recipe(tokenizer, flat)).metrics == one["metrics"]


def test_pictures_left_out_are_named(tokenizer, flat, tmp_path):
    shutil.copytree(flat, tmp_path / "some")
    (tmp_path / "some" / "a.png").write_bytes(b"broken")
    result = evaluate_into(recipe(tokenizer, tmp_path / "some"), tmp_path / "out")
    assert result["protocol"]["images"] == 7
    assert result["protocol"]["left_out"].startswith("1 of 8 samples could not be used and were left out, the first a")


@pytest.mark.parametrize(
    ("pictures", "data", "message"),
    [
        (0, {}, "holds no pictures; expected files ending in"),
        (3, {}, "none of the 3 pictures can be used, expected at least 2: 3 of 3 samples could not be used"),
        (12, {}, "11 of 11 samples cannot be used.*--data.max_bad_fraction"),
        (3, {"count": 4}, "count 4 samples asked for, the sources hold 3"),
        (3, {"batch_size": 0}, "batch_size 0; expected at least 1"),
        (3, {"num_workers": -1}, "num_workers -1; expected at least 0"),
        (3, {"count": 0}, "count 0; expected at least 1, or null for all"),
        (3, {"max_bad_fraction": 2.0}, "max_bad_fraction 2.0 is a share; expected 0 to 1"),
    ],
)
def test_pictures_that_cannot_be_used_end_with_what_is_wrong(tokenizer, tmp_path, pictures, data, message):
    (tmp_path / "in").mkdir()
    for number in range(pictures):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=message):
        evaluate_into(recipe(tokenizer, tmp_path / "in", data=data), tmp_path / "out")


def test_a_tokenizer_of_another_size_is_refused_by_both_sizes(tokenizer, flat, tmp_path):
    with pytest.raises(ValueError, match=r"'imagenet-256' expects image_size 256, the tokenizer .* has 32"):
        evaluate_into(recipe(tokenizer, flat, name="imagenet-256", image_size=256), tmp_path)


def test_other_words_for_resume_are_refused(tokenizer, flat, tmp_path):
    with pytest.raises(ValueError, match=r"takes auto .* or none"):
        evaluate_into(recipe(tokenizer, flat), tmp_path, resume="runs/other")
    with pytest.raises(ValueError, match="save_every_seconds is -1"):
        evaluate_into(dataclasses.replace(recipe(tokenizer, flat), save_every_seconds=-1.0), tmp_path)

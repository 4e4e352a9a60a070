"""Stage 1 for real: DeepSpeed, gloo, MLflow, shards and folders, on one and two processes."""

import json
import sqlite3

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.world import CONFIGS, TOKENIZER, tokenizer_options
from tests.train.launching import curve, refused, run, stop
from tokenflow import TokenFlowTokenizer
from tokenflow.train import read_rows

TERMS = ("loss", "reconstruction", "semantic", "perceptual", "codebook")
GAN_TERMS = ("adversarial", "discriminator")


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """One unbroken run on one process, by accumulation, ZeRO off."""
    output = tmp_path_factory.mktemp("one") / "run"
    run(*tokenizer_options(world, output), module=TOKENIZER)
    return output


def test_the_run_leaves_metrics_pictures_a_checkpoint_and_an_mlflow_run(finished):
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [3, 6]
    assert all("psnr" in row for row in rows)
    assert (finished / "images" / "reconstructions_00000006.png").is_file()
    assert (finished / "checkpoints" / "latest").read_text() == "step_00000006"
    store = sqlite3.connect(finished.parent / "mlflow.db")
    (run_id,) = store.execute("select run_uuid from runs where status = 'FINISHED'").fetchone()
    assert json.loads((finished / "mlflow.json").read_text())["run_id"] == run_id
    logged = {name for (name,) in store.execute("select distinct key from metrics where run_uuid = ?", [run_id])}
    assert {"loss", "psnr", "evaluation/psnr", "evaluation/usage"} <= logged
    parameters = dict(store.execute("select key, value from params where run_uuid = ?", [run_id]))
    assert parameters["train.steps"] == "6"


def test_the_exported_tokenizer_loads_and_round_trips(finished):
    tokenizer = TokenFlowTokenizer.from_pretrained(finished / "model").eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 85)
    assert torch.equal(tokenizer.decode(codes), tokenizer.reconstruct(images))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_reach_the_curve_of_one(world, finished, tmp_path, stage):
    options = tokenizer_options(world, tmp_path / "two")
    run(*options, "--ds_config", CONFIGS / f"zero{stage}.json", world_size=2, module=TOKENIZER)
    for term in TERMS:
        assert curve(tmp_path / "two", term) == pytest.approx(curve(finished, term), rel=2e-4), term
    # Adam's first steps amplify rounding, and the gradient's norm shows it most.
    norms = [curve(folder, "gradient_norm/tokenizer") for folder in (tmp_path / "two", finished)]
    assert norms[0] == pytest.approx(norms[1], rel=5e-3)
    for term in GAN_TERMS:
        first = [row[term] for row in read_rows(finished / "metrics.jsonl") if term in row]
        second = [row[term] for row in read_rows(tmp_path / "two" / "metrics.jsonl") if term in row]
        assert len(first) >= 4
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5), term
    assert curve(tmp_path / "two", "psnr", "evaluation") == pytest.approx(
        curve(finished, "psnr", "evaluation"), abs=0.02
    )
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


def test_a_stopped_run_saves_says_so_and_ends_like_the_unbroken_one(world, finished, tmp_path):
    options = tokenizer_options(world, tmp_path / "run")
    said = stop(*options, folder=tmp_path / "run", module=TOKENIZER)
    assert "INFO mlflow" not in said
    run(*options, module=TOKENIZER)
    for term in TERMS:
        assert curve(tmp_path / "run", term) == curve(finished, term)


def test_another_recipe_in_the_same_folder_is_refused(world, finished):
    line = refused(*tokenizer_options(world, finished), "--optimizer.learning_rate", 0.5, module=TOKENIZER)
    assert "optimizer.learning_rate: 0.002 there, 0.5 here" in line


def test_a_plain_folder_of_pictures_trains_with_the_same_command(world, tmp_path):
    pictures = tmp_path / "pictures" / "album"
    pictures.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(20):
        small = random.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((60, 50), Image.Resampling.BICUBIC).save(pictures / f"{index}.jpg")
    options = tokenizer_options(world, tmp_path / "run", steps=2)
    at = options.index("--data")
    options[at + 1] = tmp_path / "pictures"
    at = options.index("--evaluation_sources")
    del options[at : at + 2]
    run(*options, "--evaluation_images", 8, "--train.evaluate_every", 2, module=TOKENIZER)
    assert len(curve(tmp_path / "run", "psnr", "evaluation")) == 1


def test_a_tokenizer_without_a_pixel_decoder_trains_on_the_semantic_loss_alone(world, tmp_path):
    options = tokenizer_options(world, tmp_path / "run", steps=2)
    run(
        *options,
        *("--model.overrides.pixel_decoder", "null", "--loss.discriminator", "none", "--tracking.mlflow", "false"),
        module=TOKENIZER,
    )
    (row, *_) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert row["loss"] == pytest.approx(row["semantic"] + row["codebook"] + row["commitment"])
    assert "psnr" not in row

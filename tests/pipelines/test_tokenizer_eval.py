"""Evaluation for real: the same numbers on one and two processes, the protocol in the result, wrong input named."""

import json

import pytest

from tests.pipelines.world import tokenizer_options
from tests.train.launching import run
from tokenflow.cli import main as command_line

EVALUATE = "pipelines.tokenizer_eval"


@pytest.fixture(scope="module")
def tokenizer(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokenizer") / "run"
    options = [*tokenizer_options(world, output, steps=2), "--tracking.mlflow", "false"]
    run(*options, module="pipelines.tokenizer_pretrain")
    return output / "model"


def options(world, tokenizer, output):
    return [
        *("--tokenizer", tokenizer, "--data", world / "seen", "--data.count", 13, "--data.batch_size", 4),
        *("--teacher.preset", "nano", "--teacher.pretrained", world / "teacher/model"),
        *("--verifier", "scenes", "--output", output),
    ]


def test_two_ranks_give_the_numbers_of_one_although_the_last_batch_is_padded(world, tokenizer, tmp_path):
    printed = run(*options(world, tokenizer, tmp_path / "one"), module=EVALUATE)
    run(*options(world, tokenizer, tmp_path / "two"), world_size=2, module=EVALUATE)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["protocol"]["images"] == two["protocol"]["images"] == 13
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name
    assert one["metrics"]["verifier_original"] == 1.0
    assert one["metrics"]["lpips"] == one["metrics"]["rfid"] == "not measured"
    assert "vgg16" in one["protocol"]["not_measured"]["lpips"]
    assert "ADM centre crop" in one["protocol"]["crop"]
    assert (tmp_path / "one" / "grid.png").is_file()
    assert "psnr" in printed and "not measured" in printed


def test_the_command_line_reconstructs_a_picture_of_any_size(world, tokenizer, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (70, 41), (200, 30, 30)).save(tmp_path / "red.png")
    arguments = ["reconstruct", str(tmp_path / "red.png"), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "o")]
    assert command_line(arguments) == 0
    assert "85 codes" in capsys.readouterr().out
    (written,) = (tmp_path / "o").iterdir()
    assert Image.open(written).size == (32, 32)


def test_a_missing_tokenizer_is_named(world, tmp_path):
    output = run(*options(world, tmp_path / "nowhere", tmp_path / "out"), expected=2, module=EVALUATE)
    assert "nowhere" in output

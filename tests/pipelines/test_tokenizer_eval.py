"""Evaluation for real: the same numbers on one and two processes, killed and continued, wrong input named."""

import json

import pytest

from tests.pipelines.world import tokenizer_options
from tests.train.launching import refused, run, start, wait_until
from tokenflow.cli import main as command_line

EVALUATE = "pipelines.tokenizer_eval"


@pytest.fixture(scope="module")
def tokenizer(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokenizer") / "run"
    options = [*tokenizer_options(world, output, steps=2), "--tracking.mlflow", "false"]
    run(*options, module="pipelines.tokenizer_pretrain")
    return output / "model"


def options(world, tokenizer, output, *, pictures="seen", count=13, batch_size=4):
    return [
        *("--tokenizer", tokenizer, "--data", world / pictures, "--data.count", count, "--data.batch_size", batch_size),
        *("--teacher.preset", "nano", "--teacher.pretrained", world / "teacher/model"),
        *("--verifier", "scenes", "--output", output),
    ]


def test_two_ranks_give_the_numbers_of_one_although_the_last_batch_is_padded(world, tokenizer, tmp_path):
    printed = run(*options(world, tokenizer, tmp_path / "one"), module=EVALUATE)
    # 13 pictures on 2 ranks x 4: rank 1 has one picture and three of padding in its last batch.
    workers = ("--data.num_workers", 1)
    run(*options(world, tokenizer, tmp_path / "two"), *workers, world_size=2, module=EVALUATE)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["protocol"]["images"] == two["protocol"]["images"] == 13
    assert one["codes_used"] == two["codes_used"]
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name
    assert one["metrics"]["verifier_original"] == 1.0
    assert one["metrics"]["lpips"] == one["metrics"]["rfid"] == "not measured"
    assert "vgg16" in one["protocol"]["not_measured"]["lpips"] and "rfid not measured: rFID needs" in printed
    assert "ADM centre crop" in one["protocol"]["crop"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["grid.png", "result.json", "result.md"]
    assert "evaluated 13/13 images" in printed and "psnr" in printed and "not measured" in printed
    assert "VILA-U" in printed and "13 pictures at 32 x 32: NOT comparable" in printed
    assert [row["psnr"] for row in one["paper_rows"]["rows"] if row["model"] == "TokenFlow"] == [21.41, 22.77]
    assert one["paper_rows"]["ours"]["psnr"] == one["metrics"]["psnr"]


def kill_while_it_saves(folder, arguments, *, world_size):
    """SIGKILL all ranks when rank 0 has saved something new and is writing the next file."""
    saved = folder / "partial" / "rank_00000.pt"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    processes = start(*arguments, world_size=world_size, module=EVALUATE)
    wait_until(lambda: saved.exists() and saved.stat().st_mtime_ns > before, processes[0])
    wait_until(lambda: any(saved.parent.glob(".rank_*")), processes[0])
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    assert saved.exists() and not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("world_size", "kills"), [(1, 1), pytest.param(2, 3, marks=pytest.mark.slow)], ids=["one-rank", "two-ranks"]
)
def test_a_killed_evaluation_ends_in_the_unbroken_ones_result(world, tokenizer, tmp_path, world_size, kills):
    def arguments(name):
        settings = options(world, tokenizer, tmp_path / name, pictures="train", count=95, batch_size=1)
        return [*settings, "--save_every_seconds", 0]

    run(*arguments("unbroken"), world_size=world_size, module=EVALUATE)
    for _ in range(kills):
        kill_while_it_saves(tmp_path / "killed", arguments("killed"), world_size=world_size)
    printed = run(*arguments("killed"), world_size=world_size, module=EVALUATE)
    assert "continuing after" in printed
    for name in ("result.json", "result.md", "grid.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["grid.png", "result.json", "result.md"]


def test_the_command_line_reconstructs_a_picture_of_any_size(world, tokenizer, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (70, 41), (200, 30, 30)).save(tmp_path / "red.png")
    arguments = ["reconstruct", str(tmp_path / "red.png"), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "o")]
    assert command_line(arguments) == 0
    assert "85 codes" in capsys.readouterr().out
    (written,) = (tmp_path / "o").iterdir()
    assert Image.open(written).size == (32, 32)


def test_a_missing_tokenizer_is_named(world, tmp_path):
    assert "nowhere" in refused(*options(world, tmp_path / "nowhere", tmp_path / "out"), module=EVALUATE)


def test_a_recipe_of_another_size_ends_with_one_line(world, tokenizer, tmp_path):
    arguments = [*options(world, tokenizer, tmp_path / "out"), "--recipe", "imagenet-256"]
    line = refused(*arguments, module=EVALUATE)
    assert "expects image_size 256" in line and "has 32" in line

"""`tokenflow make-shards`, from the command line to shards that inspect-shards accepts."""

import json

import numpy as np
import pytest
from PIL import Image

from tokenflow.cli import main


@pytest.fixture
def pictures(tmp_path):
    """Six pictures of noise with captions, one of them twice, and one that is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    (folder / "7.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "8.png").write_bytes(b"not a picture")
    return folder


def test_a_folder_becomes_a_set_that_training_reads(pictures, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["make-shards", str(pictures), "--out", str(out), "--samples_per_shard", "4"]) == 0
    printed = capsys.readouterr().out
    assert "6 samples in 2 shards" in printed and "dropped: duplicate" in printed
    report = json.loads((out / "manifest.json").read_text())["report"]
    assert (report["read"], report["written"], report["dropped"]["duplicate"]) == (8, 6, 1)
    assert main(["inspect-shards", str(out), "--image_size", "16", "--batch_size", "2"]) == 0


def test_a_dry_run_writes_nothing_and_names_what_is_broken(pictures, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["make-shards", str(pictures), "--out", str(out), "--dry_run"]) == 0
    assert "8: " in capsys.readouterr().out
    assert not out.exists()


def test_json_is_the_manifest_on_disk_and_a_second_run_changes_nothing(pictures, tmp_path, capsys):
    out = tmp_path / "shards"
    for _ in range(2):
        assert main(["make-shards", str(pictures), "--out", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads((out / "manifest.json").read_text())


def test_the_input_is_not_written_over(pictures, capsys):
    assert main(["make-shards", str(pictures), "--out", str(pictures)]) == 2
    assert "choose another folder" in capsys.readouterr().err

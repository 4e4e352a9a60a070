"""`tokenflow inspect-shards`: what it prints and writes, and its exit code."""

import json
import re

import numpy as np
from PIL import Image

from tests.data.damaged import jpeg, sample, write_damaged
from tokenflow.cli import main
from tokenflow.data.files import write_json
from tokenflow.data.shape_shards import write_shard


def test_a_good_set_gives_zero_a_page_and_a_contact_sheet(tmp_path, capsys):
    shards = write_damaged(tmp_path / "shards")
    out = tmp_path / "out"
    arguments = ["inspect-shards", str(shards), "--image_size", "32", "--batch_size", "8"]
    assert main([*arguments, "--out", str(out), "--pictures", "12", "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "46 samples in 2 shards" in shown and "cannot be used: 5" in shown and "batches of 8 x 3 x 32 x 32" in shown

    page = (out / "index.html").read_text()
    assert "Short side" in page and "image file is truncated" in page and "skips 5 samples" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    sheet = np.asarray(Image.open(out / "contact_sheet.png"))
    assert sheet.shape == (2 * 132 + 4, 8 * 132 + 4, 3)

    report = json.loads((out / "report.json").read_text())
    assert main([*arguments, "--pictures", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert report["unusable"] == 5 and report["training"]["readable"] and not report["complaints"]


def test_one_when_training_would_not_read_it_or_a_manifest_is_wrong(tmp_path, capsys):
    broken = [sample(f"{n}", b"broken" if n < 11 else jpeg(40, 40)) for n in range(60)]
    entry = write_shard(tmp_path / "a.tar", broken)
    arguments = ["inspect-shards", str(tmp_path), "--image_size", "32", "--batch_size", "4"]
    assert main(arguments) == 1
    assert "training would stop: 11 of 60 samples" in capsys.readouterr().out
    assert main([*arguments, "--all", "--json"]) == 1
    assert "training stops" in json.loads(capsys.readouterr().out)["complaints"][0]

    write_shard(tmp_path / "a.tar", [sample("a", jpeg(40, 40))])
    write_json(tmp_path / "manifest.json", {"shards": [entry]})
    assert main(arguments) == 1
    assert "the manifest says 60" in capsys.readouterr().out


def test_two_when_there_is_nothing_to_inspect(tmp_path, capsys):
    assert main(["inspect-shards", str(tmp_path / "absent")]) == 2
    assert main(["inspect-shards", str(tmp_path)]) == 2
    assert main(["inspect-shards", str(tmp_path), "--workers", "-1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_dry_run_only_counts(tmp_path, capsys):
    shards = write_damaged(tmp_path / "shards")
    assert main(["inspect-shards", str(shards), "--out", str(tmp_path / "out"), "--dry_run"]) == 0
    assert "46 samples" in capsys.readouterr().out and not (tmp_path / "out").exists()

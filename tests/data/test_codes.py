"""Codes in place of pictures: written once, read as if the pictures had been encoded on the way."""

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow import TokenFlowTokenizer
from tokenflow.cli import main
from tokenflow.commands.encode_shards import ranks
from tokenflow.data import DataConfig, EvaluationBatches, Loader, SourceConfig, codes_of, write_shapes
from tokenflow.data.code_shards import CodeShards
from tokenflow.data.codes import CodesDescription
from tokenflow.data.samples import BadSample
from tokenflow.data.shape_shards import write_shard
from tokenflow.tokenizer.presets import preset

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"global_batch_size": 8, "micro_batch_size": 4, "seed": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures in shards of 16, one picture of them broken; a random tokenizer; their codes."""
    folder = tmp_path_factory.mktemp("world")
    write_shapes(folder / "pictures", num_samples=40, image_size=32, seed=0, samples_per_shard=16)
    rows = [{"__key__": "x.y", "png": b"no picture", "txt": b"lost"}, {"__key__": "z", "txt": b"none"}]
    write_shard(folder / "pictures" / "zz.tar", rows)
    (folder / "pictures" / "manifest.json").unlink()
    torch.manual_seed(0)
    TokenFlowTokenizer(preset("tokenflow-nano")).eval().save_pretrained(folder / "tokenizer")
    assert encode(folder, folder / "codes") == 0
    return folder


def encode(world, out, *options, data=None) -> int:
    given = ["--data", data or world / "pictures", "--tokenizer", world / "tokenizer", "--out", out, "--batch_size", 7]
    return main(["encode-shards", *map(str, (*given, *options))])


def digests(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def config(path, **changes) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=str(path)),), image_size=32, captions="any", records=True, **changes)


def test_training_sees_the_same_samples_in_the_same_order_bad_ones_included(world):
    tokenizer = TokenFlowTokenizer.from_pretrained(world / "tokenizer")
    pictures, codes = (Loader(config(world / name), **SIZES) for name in ("pictures", "codes"))
    assert pictures.total_samples == codes.total_samples == 42
    for _ in range(24):
        (expected, first), (batch, second) = next(pictures), next(codes)
        assert "images" not in batch and batch["codes"].dtype == torch.int64
        assert torch.equal(batch["codes"], tokenizer.encode(expected["images"]))
        assert batch["captions"] == expected["captions"] and batch["records"] == expected["records"]
        assert torch.equal(batch["sample_seed"], expected["sample_seed"])
        assert first.samples == second.samples
    assert len(codes.skipped) == len(pictures.skipped) == 2


def test_evaluation_batches_hold_codes_and_mask_what_has_none(world):
    tokenizer = TokenFlowTokenizer.from_pretrained(world / "tokenizer")
    for expected, batch in zip(
        EvaluationBatches(config(world / "pictures"), batch_size=5),
        EvaluationBatches(config(world / "codes"), batch_size=5),
        strict=True,
    ):
        mask = batch["mask"]
        assert torch.equal(mask, expected["mask"])
        assert torch.equal(batch["codes"][mask], tokenizer.encode(expected["images"])[mask])
        assert not batch["codes"][~mask].any()


def test_a_folder_of_pictures_is_cut_into_shards_and_keys_with_dots_stay_apart(world, tmp_path):
    (tmp_path / "n01").mkdir()
    for number in range(5):
        pixels = np.random.RandomState(number).randint(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "n01" / f"a.{number}.png")
    assert encode(world, tmp_path / "codes", "--samples_per_shard", 2, data=tmp_path / "n01" / "..") == 0
    assert sorted(path.name for path in (tmp_path / "codes").glob("*.tar")) == [f"codes-00000{n}.tar" for n in range(3)]
    (batch,) = EvaluationBatches(config(tmp_path / "codes"), batch_size=5)
    assert batch["keys"] == [f"n01/a_{number}" for number in range(5)] and len(batch["codes"].unique(dim=0)) == 5


def test_any_number_of_ranks_writes_the_same_bytes(world, tmp_path):
    for rank in (2, 0, 1):
        assert not (tmp_path / "codes" / "manifest.json").exists()
        assert encode(world, tmp_path / "codes", "--rank", rank, "--world_size", 3) == 0
    assert digests(tmp_path / "codes") == {n: d for n, d in digests(world / "codes").items() if "index" not in n}


def test_a_killed_encoding_leaves_no_half_shard_and_the_next_one_ends_like_an_unbroken_one(world, tmp_path):
    out = tmp_path / "codes"
    options = ["--data", world / "pictures", "--tokenizer", world / "tokenizer", "--out", out, "--batch_size", 7]
    program = [sys.executable, str(ROOT / "tools" / "encode_shards.py"), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (out / ".codes-000001.tar.partial").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = digests(world / "codes")
    for path in out.glob("*.tar"):
        assert digests(out)[path.name] == finished[path.name]
    if not (out / "manifest.json").exists():
        with pytest.raises(ValueError, match="its encoding was not finished"):
            codes_of(config(out))
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob(".*.entry.json")}
    assert encode(world, out) == 0
    assert {name: digest for name, digest in digests(out).items() if name in finished} == {
        name: digest for name, digest in finished.items() if "index" not in name
    }
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_a_dry_run_writes_nothing_and_says_how_much_it_would(world, tmp_path, capsys):
    assert encode(world, tmp_path / "codes", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "42 pictures, 85 codes each" in shown and "4 shards" in shown and "0 of them complete" in shown
    assert not (tmp_path / "codes").exists()


def test_codes_of_another_tokenizer_or_other_pictures_are_not_mixed_in(world, tmp_path, capsys):
    torch.manual_seed(1)
    TokenFlowTokenizer(preset("tokenflow-nano")).eval().save_pretrained(tmp_path / "other")
    for options, expected in (
        (["--tokenizer", tmp_path / "other"], "asked for are codes of"),
        (["--samples_per_shard", 5], "other pictures: source.samples_per_shard is 5, there None"),
    ):
        assert encode(world, world / "codes", *options) == 2
        line = capsys.readouterr().err.strip()
        assert "holds codes of" in line and expected in line and "\n" not in line
    assert encode(world, tmp_path / "again", data=world / "codes") == 2
    assert "expected pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random"}, "data.crop is random .* neither cropped nor flipped"),
        ({"flip_probability": 0.5}, "data.flip_probability 0.5"),
        ({"image_size": 64}, "data.image_size is 64, but .* 32 pixels"),
    ],
)
def test_what_needs_pixels_is_refused(world, changes, message):
    with pytest.raises(ValueError, match=message):
        Loader(dataclasses.replace(config(world / "codes"), **changes), **SIZES)


def test_pictures_and_codes_are_not_read_in_one_run(world):
    sources = tuple(SourceConfig(path=str(world / name)) for name in ("codes", "pictures"))
    with pytest.raises(ValueError, match=r"holds codes of .* but .* holds pictures"):
        Loader(dataclasses.replace(config(world / "codes"), sources=sources), **SIZES)


@pytest.mark.parametrize(
    ("codebook_size", "kind"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_codes_take_the_smallest_type_that_holds_them(codebook_size, kind):
    description = CodesDescription(
        tokenizer="t", fingerprint="f", image_size=32, scales=(1, 2), codebook_size=codebook_size
    )
    codes = np.array([0, 1, 2, 3, codebook_size - 1])
    packed = description.pack(codes)
    assert np.load(io.BytesIO(packed)).dtype == kind
    assert np.array_equal(description.unpack(packed), codes)
    assert CodesDescription.from_json(json.loads(json.dumps(description.to_json()))) == description
    for broken in (b"", b"x", packed[:-1], description.pack(codes)[:40]):
        with pytest.raises(BadSample):
            description.unpack(broken)
    with pytest.raises(BadSample, match="expected 0 to 3"):
        dataclasses.replace(description, codebook_size=4).unpack(packed)


def test_ranks_come_from_options_then_from_the_launcher_then_there_is_one():
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
    assert ranks(1, 3, slurm) == (1, 3)
    assert ranks(None, None, {"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    assert ranks(None, None, {**slurm, "SLURM_STEP_ID": "0"}) == (2, 4)
    assert ranks(None, None, slurm) == ranks(None, None, {}) == (0, 1)
    for wrong in ((1, None), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="--rank is"):
            ranks(*wrong, {})


def test_a_rank_that_does_not_exist_writes_nothing(world, tmp_path):
    description = codes_of(config(world / "codes"))
    shards = CodeShards(SourceConfig(path=str(world / "pictures")), tmp_path / "x", description=description)
    with pytest.raises(ValueError, match=r"rank 2 must lie in 0\.\.1"):
        shards.run(lambda images: images, batch_size=2, rank=2, world_size=2)
    assert not (tmp_path / "x").exists()

"""An inspection counts what lies there, finds every kind of damage, and says the same for any number of processes."""

import json
import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.data.damaged import jpeg, sample, write_damaged
from tokenflow.data.histograms import EDGES, Histograms, label
from tokenflow.data.inspection import _after_death, _look, _spans, inspect
from tokenflow.data.ordered_workers import ordered_map
from tokenflow.data.shape_shards import write_shapes, write_shard
from tokenflow.data.shards import ShardSource, expand_shards
from tokenflow.data.training_check import check_training, too_many_unusable


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return write_damaged(tmp_path_factory.mktemp("damaged") / "shards")


@pytest.fixture(scope="module")
def found(damaged):
    return inspect(str(damaged), pictures=6)


def test_every_kind_of_damage_is_counted_and_named(found):
    assert found.contents.samples == 46 and found.unusable == 5
    assert {item.key: item.reason for item in found.contents.unusable} == {
        "zero": "empty",
        "cut": "truncated",
        "text": "not_a_picture",
        "record": "bad_record",
        "alone": "without_picture",
    }
    assert all(item.where.endswith("shard-000001.tar") for item in found.contents.unusable)
    assert [row["unusable"] for row in found.contents.shards] == [0, 5]


def test_sizes_captions_and_faces_are_those_of_the_samples(found):
    contents = found.contents
    assert contents.histograms.ranges["short_side"] == (128, 300)
    assert contents.histograms.ranges["caption_words"] == (0, 39)
    assert sum(contents.histograms.bars("short_side").values()) == contents.formats["jpeg"] == 41
    assert contents.histograms.bars("faces") == {"0": 14, "1": 13, "2": 13}
    assert contents.counts["faces"] == 26 and contents.counts["faces_known"] == 40
    assert contents.counts["broken_utf8"] == 1


def test_a_key_that_is_there_twice_is_named_with_both_places(found, damaged):
    assert found.repeated_keys == 1
    first, second = (str(damaged / f"shard-{number:06d}.tar") for number in range(2))
    assert found.repeated == (("0000", first, second),)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_report_is_the_same_for_any_number_of_processes(found, damaged, workers):
    again = inspect(str(damaged), pictures=6, workers=workers)
    assert again.to_json() == found.to_json()
    for one, other in zip(again.contents.thumbnails, found.contents.thumbnails, strict=True):
        assert one.key == other.key and np.array_equal(one.pixels, other.pixels)


def test_shards_are_held_against_their_manifest(tmp_path):
    folder = write_damaged(tmp_path / "shards")
    check = inspect(str(folder)).manifest
    assert check.holds and (check.listed, check.hashed) == (2, 2)

    content = bytearray((folder / "shard-000000.tar").read_bytes())
    content[700] ^= 1
    (folder / "shard-000000.tar").write_bytes(content)
    write_shard(folder / "shard-000007.tar", [sample("new", jpeg(40, 40))])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"].append({"name": "shard-000005.tar", "samples": 3, "bytes": 1, "sha256": "0"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    check = inspect(str(folder)).manifest
    assert not check.holds
    assert len(check.different) == 1 and "sha256" in check.different[0] and "shard-000000" in check.different[0]
    assert [path.rpartition("/")[2] for path in check.missing] == ["shard-000005.tar"]
    assert [path.rpartition("/")[2] for path in check.unlisted] == ["shard-000007.tar"]


def test_a_manifest_that_promises_more_samples_is_told(tmp_path):
    folder = write_damaged(tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["samples"] += 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = inspect(str(folder))
    assert "samples 20, the manifest says 22" in found.manifest.different[0]
    assert found.contents.reasons["damaged_shard"] == 2


def test_a_manifest_of_another_kind_is_an_error_that_says_so(tmp_path):
    write_shard(tmp_path / "a.tar", [sample("a", jpeg(40, 40))])
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match="is no manifest of shards"):
        inspect(str(tmp_path))


def test_a_folder_is_inspected_in_parts_that_add_up(tmp_path):
    for number in range(300):
        Image.new("RGB", (20 + number % 7, 20)).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "000.txt").write_text("black")
    (tmp_path / "150.png").write_bytes(b"")
    found = inspect(str(tmp_path), workers=2, pictures=9)
    assert found.kind == "folder" and found.contents.samples == 300 and found.contents.formats == {"png": 299}
    assert [item.key for item in found.contents.unusable] == ["150"]
    assert found.contents.counts["caption"] == 1 and len(found.contents.thumbnails) == 8
    assert found.manifest is None and not found.contents.shards


def test_headers_alone_give_the_same_sizes_and_miss_what_is_behind_them(found, damaged):
    quick = inspect(str(damaged), check="headers", pictures=0)
    assert quick.contents.reasons == found.contents.reasons - Counter(truncated=1)
    assert quick.contents.formats["jpeg"] == found.contents.formats["jpeg"] + 1
    assert not quick.contents.thumbnails


def test_a_process_that_dies_costs_its_shard_and_no_more(tmp_path):
    folder = write_damaged(tmp_path / "shards")

    def deadly(span):
        if span.source.endswith("shard-000000.tar"):
            os._exit(9)
        return look(span)

    look = partial(_look, check="pixels", thumbnail_size=8, codes=None)
    spans = _spans(ShardSource(expand_shards(str(folder))), pictures=0)
    (first, died), (_, second) = ordered_map(deadly, spans, workers=2)
    found = _after_death(first, died)
    assert (found.samples, found.reasons["process_died"], second.samples) == (20, 20, 26)
    assert "status 9" in found.unusable[0].message and found.shards[0]["sha256"]


def test_a_cut_tar_is_damage_and_not_a_crash(tmp_path):
    write_shard(tmp_path / "a.tar", [sample(f"{n}", jpeg(60, 60, seed=n)) for n in range(9)])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2 + 100] + b"\1" * 3000)
    found = inspect(str(tmp_path))
    assert 0 < found.contents.samples < 9
    assert set(found.contents.reasons) <= {"damaged_shard", "truncated", "corrupt"}


@pytest.mark.parametrize("read", ["batch", "all"])
def test_the_training_loader_itself_reads(tmp_path, read):
    write_shapes(tmp_path, num_samples=70, image_size=32, seed=0)
    seen = []
    check = check_training(str(tmp_path), image_size=32, batch_size=16, read=read, progress=seen.append)
    assert check.readable and check.batch_shape == (16, 3, 32, 32)
    assert check.samples_read == seen[-1] == (64 if read == "all" else 16)


def test_what_stops_training_is_said(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    check = check_training(str(tmp_path), image_size=32)
    assert not check.readable and "unusable" in check.problem
    assert too_many_unusable(unusable=10, samples=20) == ""
    assert "11 of 20 samples" in too_many_unusable(unusable=11, samples=20)


@pytest.mark.parametrize("name", list(EDGES))
def test_every_value_falls_into_the_bin_that_its_label_names(name):
    for edge in EDGES[name]:
        histograms = Histograms()
        histograms.count(name, edge)
        (shown,) = histograms.bars(name)
        assert shown.startswith(f"{edge:g}") and shown == label(name, EDGES[name].index(edge) + 1)
    assert len({label(name, place) for place in range(len(EDGES[name]) + 1)}) == len(EDGES[name]) + 1

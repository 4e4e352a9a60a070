import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tokenflow.data.config import DataConfig, SourceConfig
from tokenflow.data.folders import FolderSource
from tokenflow.data.picture_check import PictureConfig
from tokenflow.data.sample_check import CaptionConfig
from tokenflow.data.samples import BadSample, RawSample
from tokenflow.data.shard_making import MakeShardsConfig, ShardMaking
from tokenflow.data.shards import ShardSource, expand_shards
from tokenflow.data.sources import SampleReader
from tokenflow.data.transforms import decode_image

SMALL = MakeShardsConfig(shard_bytes=20_000)


def noise(seed, width=24, height=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(seed, **size):
    stream = io.BytesIO()
    noise(seed, **size).save(stream, format="PNG")
    return stream.getvalue()


def folder(path, *, count=30):
    """Pictures in two folders, with captions, some records, every tenth damaged, some duplicates."""
    for number in range(count):
        stem = path / ("a" if number % 2 else "b") / f"{number:03d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        content = png(number - 7 if number % 14 == 13 else number)
        stem.with_suffix(".png").write_bytes(content[:-40] if number % 10 == 9 else content)
        stem.with_suffix(".txt").write_text(f"picture {number}")
        if number % 3 == 0:
            stem.with_suffix(".json").write_text(json.dumps({"number": number}))
    return path


def make(path, out, config=SMALL, **options):
    return ShardMaking(FolderSource(path), out, path=str(path), config=config).run(**options)


def tree(path):
    """Every file under a folder by its content."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def samples(out):
    shards = sorted(str(path) for path in Path(out).glob("shard-*.tar"))
    return list(webdataset.WebDataset(shards, shardshuffle=False)) if shards else []


class Samples:
    """A source of samples in memory."""

    def __init__(self, *rows):
        self.rows = rows
        self.shard_sizes = [len(rows)]

    def describe(self, index):
        return (self.rows[index].key, "memory") if isinstance(self.rows[index], RawSample) else ("odd", "memory")

    def read(self, index):
        row = self.rows[index]
        if isinstance(row, RawSample):
            return row
        if callable(row):
            return row()
        raise row


def raw(key, image, **fields):
    return RawSample(key=key, where="memory", image=image, **fields)


def make_of(out, *rows, config=SMALL, **options):
    manifest = ShardMaking(Samples(*rows), out, path="/elsewhere", config=config).run(**options)
    return manifest, {sample["__key__"]: sample for sample in samples(out)}


def test_a_folder_becomes_shards_that_training_reads(tmp_path):
    manifest = make(folder(tmp_path / "in"), tmp_path / "out")
    report = manifest["report"]
    assert report["read"] == 30 and report["written"] == manifest["samples"] == 25
    assert report["dropped"] == {"duplicate": 2, "truncated": 3} and len(manifest["shards"]) > 1
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path / "out")),), image_size=16, records=True)
    reader = SampleReader(config, seed=0)
    assert sum(reader.sizes) == 25
    for index in range(25):
        sample = reader.read_in_order(index)
        number = int(sample.key.rpartition("/")[2])
        assert sample.caption == sample.record["caption"] == f"picture {number}"
        assert sample.record.get("number") == (number if number % 3 == 0 else None)
        assert (sample.record["width"], sample.record["height"]) == (24, 16)


def test_the_manifest_tells_what_is_on_disk(tmp_path):
    manifest = make(folder(tmp_path / "in"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    for entry in manifest["shards"]:
        content = (tmp_path / "out" / entry["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"] and len(content) == entry["bytes"]
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            assert sum(name.endswith(".json") for name in archive.getnames()) == entry["samples"]
            assert {(member.mtime, member.uid, member.gid) for member in archive} == {(0, 0, 0)}
    assert manifest["bytes"] == sum(entry["bytes"] for entry in manifest["shards"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "report.jsonl"} | {entry["name"] for entry in manifest["shards"]}


def test_shards_reach_their_size_and_do_not_exceed_it(tmp_path):
    manifest = make(folder(tmp_path / "in", count=60), tmp_path / "out")
    largest = max(entry["bytes"] / entry["samples"] for entry in manifest["shards"])
    # a tar ends in up to 20 empty blocks
    assert all(entry["bytes"] <= 20_000 + 10_240 for entry in manifest["shards"])
    assert all(entry["bytes"] > 20_000 - largest for entry in manifest["shards"][:-1])
    by_count = make(tmp_path / "in", tmp_path / "counted", MakeShardsConfig(samples_per_shard=7))
    assert [entry["samples"] for entry in by_count["shards"][:-1]] == [7] * (len(by_count["shards"]) - 1)


@pytest.mark.parametrize("seed", [None, 5])
def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path, seed):
    folder(tmp_path / "in")
    config = MakeShardsConfig(shard_bytes=20_000, shuffle_seed=seed, duplicates="near")
    trees = []
    for workers in (0, 1, 3):
        make(tmp_path / "in", tmp_path / f"out-{workers}", config, workers=workers)
        trees.append(tree(tmp_path / f"out-{workers}"))
    assert trees[0] == trees[1] == trees[2] and len(trees[0]) > 4


def test_a_seed_shuffles_and_loses_nothing(tmp_path):
    rows = [raw(f"{number:02d}", png(number)) for number in range(40)]
    orders = []
    for seed in (None, 1, 2, 1):
        config = MakeShardsConfig(shuffle_seed=seed)
        _, found = make_of(tmp_path / f"{len(orders)}", *rows, config=config)
        orders.append(list(found))
    assert orders[0] == sorted(orders[0]) and orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 3 and len({frozenset(order) for order in orders}) == 1


def test_shards_can_be_made_of_shards_again(tmp_path):
    first = make(folder(tmp_path / "in"), tmp_path / "first")
    source = ShardSource(expand_shards(str(tmp_path / "first")))
    again = ShardMaking(source, tmp_path / "again", path=str(tmp_path / "first"), config=SMALL).run()
    assert again["shards"] == first["shards"] and again["report"]["written"] == 25
    assert not again["report"]["dropped"] and not again["report"]["changed"]
    with pytest.raises(ValueError, match="which is the input"):
        ShardMaking(source, tmp_path / "first", path=str(tmp_path / "first"), config=SMALL)


def test_of_duplicates_the_first_in_the_input_is_kept(tmp_path):
    rows = [raw(f"{number:03d}", png(number % 10)) for number in range(50)]
    manifest, found = make_of(tmp_path / "out", *rows, workers=3)
    assert list(found) == [f"{number:03d}" for number in range(10)]
    assert manifest["report"]["dropped"] == {"duplicate": 40}
    _, found = make_of(tmp_path / "kept", *rows, config=MakeShardsConfig(duplicates="keep"))
    assert len(found) == 50


def test_near_duplicates_go_on_request(tmp_path):
    def picture(quality, seed):
        stream = io.BytesIO()
        noise(seed, 8, 8).resize((64, 64), Image.Resampling.BICUBIC).save(stream, format="JPEG", quality=quality)
        return stream.getvalue()

    rows = [raw(f"{seed}-{quality}", picture(quality, seed)) for quality in (90, 70) for seed in range(6)]
    assert len(make_of(tmp_path / "all", *rows)[1]) == 12
    manifest, found = make_of(tmp_path / "out", *rows, config=MakeShardsConfig(duplicates="near"), workers=2)
    assert list(found) == [f"{seed}-90" for seed in range(6)]
    assert manifest["report"]["dropped"] == {"near_duplicate": 6}


def test_pictures_with_faces_are_repeated_under_names_of_their_own(tmp_path):
    rows = [raw(f"{count}", png(count), record=json.dumps({"faces": {"count": count}}).encode()) for count in (0, 1, 3)]
    manifest, found = make_of(tmp_path / "out", *rows, config=MakeShardsConfig(repeat_faces=2))
    assert list(found) == ["0", "1", "1-copy2", "3", "3-copy2"]
    assert found["1"]["png"] == found["1-copy2"]["png"] and found["1"]["json"] == found["1-copy2"]["json"]
    assert manifest["report"] | {"changed": {}} == {
        "read": 3, "written": 5, "repeated": 2, "dropped": {}, "changed": {}
    }  # fmt: skip


def test_face_boxes_follow_the_resize(tmp_path):
    record = json.dumps({"faces": {"count": 1, "boxes": [[10, 4, 8, 6]]}}).encode()
    config = MakeShardsConfig(pictures=PictureConfig(short_side=8))
    _, found = make_of(tmp_path / "out", raw("x", png(1), record=record), config=config)
    assert json.loads(found["x"]["json"])["faces"]["boxes"] == [[5, 2, 4, 3]]
    assert decode_image(found["x"]["png"]).size == (12, 8)


NAMES = {
    "../../etc/passwd": "etc/passwd",
    "/absolute/name": "absolute/name",
    "C:\\pictures\\one": "C_/pictures/one",
    "photo.v2.final": "photo_v2_final",
    "./a/./b": "a/b",
    "__meta__": "meta__",
    "-rf": "rf",
    "two words\n": "two_words_",
    "café": "cafe",
    "図/1": "1",
    "図": "sample-000000010",
    "lone \udcff": "lone_",
    "..": "sample-000000012",
}


def test_names_are_made_safe_and_kept_apart(tmp_path):
    rows = [raw(name, png(number)) for number, name in enumerate(NAMES)]
    rows += [raw("cafe", png(90)), raw("x" * 500, png(91)), raw("x" * 499, png(92))]
    manifest, found = make_of(tmp_path / "out", *rows)
    short = [name for name in found if not name.startswith("x")]
    assert short == [*NAMES.values(), "cafe-2"]
    assert all(len(name) <= 80 for name in found) and len(found) == len(rows) == manifest["samples"]
    # what they were called stays on record
    assert json.loads(found["photo_v2_final"]["json"])["original_key"] == "photo.v2.final"
    source = ShardSource(expand_shards(str(tmp_path / "out")))
    assert sum(source.shard_sizes) == len(rows) and source.read(3).image == rows[3].image


CAPTIONS = [
    ("plain", b"a plain caption", "a plain caption", None),
    ("utf8", "ein schönes Bild".encode(), "ein schönes Bild", None),
    ("bom", b"\xef\xbb\xbfwith a mark", "with a mark", None),
    ("windows", "ein schönes Bild".encode("cp1252"), "ein schönes Bild", "caption_recoded"),
    ("utf16", "wide".encode("utf-16"), "wide", "caption_recoded"),
    ("odd", b"\x81\xff odd", "� ÿ odd".replace("� ÿ", "�ÿ"), "caption_recoded"),
    ("control", b"nul\x00 and bell\x07\n", "nul  and bell", None),
]


def test_captions_become_clean_utf8(tmp_path):
    rows = [raw(name, png(number), text=text) for number, (name, text, _, _) in enumerate(CAPTIONS)]
    manifest, found = make_of(tmp_path / "out", *rows)
    for name, _, expected, _ in CAPTIONS:
        assert found[name]["txt"].decode() == json.loads(found[name]["json"])["caption"] == expected
    assert manifest["report"]["changed"] == {"caption_recoded": sum(bool(change) for *_, change in CAPTIONS)}
    japanese = MakeShardsConfig(captions=CaptionConfig(encoding="shift_jis"))
    _, found = make_of(tmp_path / "japan", raw("x", png(0), text="猫".encode("shift_jis")), config=japanese)
    assert found["x"]["txt"].decode() == "猫"


def test_captions_are_filtered_by_their_length(tmp_path):
    rows = [raw(f"{length}", png(length), text=b"x" * length) for length in range(8)]
    config = MakeShardsConfig(captions=CaptionConfig(min_length=3, max_length=5))
    manifest, found = make_of(tmp_path / "out", *rows, config=config)
    assert list(found) == ["3", "4", "5"]
    assert manifest["report"]["dropped"] == {"caption_too_long": 2, "caption_too_short": 3}


def test_metadata_survives_and_what_is_none_is_counted(tmp_path):
    rows = [
        raw("object", png(0), record=b'{"url": "u", "caption": "from the record", "nested": {"a": [1, null]}}'),
        raw("list", png(1), record=b"[1, 2]"),
        raw("broken", png(2), record=b"{broken"),
        raw("deep", png(3), record=b"[" * 100_000),
        raw("class", png(4), label=b"7"),
    ]
    manifest, found = make_of(tmp_path / "out", *rows)
    records = {key: json.loads(sample["json"]) for key, sample in found.items()}
    assert records["object"]["url"] == "u" and records["object"]["nested"] == {"a": [1, None]}
    assert found["object"]["txt"] == b"from the record" and records["list"]["value"] == [1, 2]
    assert found["class"]["cls"] == b"7" and manifest["report"]["changed"] == {"metadata_dropped": 2}
    assert all(record["sha256"] == hashlib.sha256(found[key]["png"]).hexdigest() for key, record in records.items())


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def test_no_sample_ends_the_process(tmp_path):
    rows = [raw(f"{number:02d}", png(number)) for number in range(20)]
    rows[3:3] = [BadSample("cut off"), KeyError("a bug"), MemoryError(), kill_me, raw("codes", None), raw("no", b"")]
    manifest, found = make_of(tmp_path / "out", *rows, workers=2)
    assert list(found) == [f"{number:02d}" for number in range(20)]
    expected = {"unreadable": 1, "failed": 2, "crashed": 1, "no_picture": 1, "empty": 1}
    assert manifest["report"]["dropped"] == expected and manifest["report"]["read"] == 26
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert Counter(line["dropped"] for line in lines) == expected
    assert any("cut off" in line["detail"] for line in lines) and any("KeyError" in line["detail"] for line in lines)


def test_a_set_without_a_usable_sample_has_no_shards(tmp_path):
    manifest, _ = make_of(tmp_path / "out", raw("a", b""), raw("b", b"text"))
    assert manifest["shards"] == [] and manifest["samples"] == 0
    assert manifest["report"]["dropped"] == {"empty": 1, "not_a_picture": 1}
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_finished_set_is_left_alone_and_other_settings_are_refused(tmp_path):
    manifest = make(folder(tmp_path / "in"), tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert make(tmp_path / "in", tmp_path / "out") == manifest
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="shard_bytes is 9999, there 20000"):
        make(tmp_path / "in", tmp_path / "out", MakeShardsConfig(shard_bytes=9999))
    (tmp_path / "in" / "new.png").write_bytes(png(99))
    with pytest.raises(ValueError, match="begun with other settings: input"):
        make(tmp_path / "in", tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="did not make"):
        make(tmp_path / "in", tmp_path / "foreign")


def test_a_lost_shard_is_made_again(tmp_path):
    make(folder(tmp_path / "in"), tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "shard-000001.tar").unlink()
    make(tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    folder(tmp_path / "in")
    making = ShardMaking(FolderSource(tmp_path / "in"), tmp_path / "out", path=str(tmp_path / "in"), config=SMALL)
    with making.folder.lock():
        # record locks belong to a process, so the other has to be one
        other = multiprocessing.get_context("fork").Process(target=expect_locked, args=(making,))
        other.start()
        other.join(30)
        assert other.exitcode == 0


def expect_locked(making):
    with pytest.raises(ValueError, match="another process"):
        making.run()

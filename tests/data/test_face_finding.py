"""Faces written into the records of shards and folders, on photographs that scikit-image and scikit-learn carry."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from tests.data.damaged import sample
from tokenflow.cli import main
from tokenflow.data.config import SourceConfig
from tokenflow.data.face_detectors import LbpFaces
from tokenflow.data.face_finding import FaceFinding
from tokenflow.data.face_index import FACE_INDEX_NAME, faces_of_source, read_face_index
from tokenflow.data.face_records import FACE_REPORT_NAME
from tokenflow.data.files import write_json
from tokenflow.data.inspection import inspect
from tokenflow.data.photographs import photograph
from tokenflow.data.shape_shards import write_shard
from tokenflow.data.sources import open_source

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

NAMES = ("astronaut", "cat", "coffee", "rocket")
DETECTOR = LbpFaces()


def jpeg(name, *, size=128):
    picture = photograph(name)
    side = min(picture.size)
    stream = io.BytesIO()
    picture.crop((0, 0, side, side)).resize((size, size)).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures():
    return {name: jpeg(name) for name in NAMES}


def stored(pictures, number, **members):
    """A sample that shows a face if its number is a multiple of four."""
    return sample(f"{number:04d}", pictures[NAMES[number % 4]], txt=b"a photograph", **members)


def write_set(folder, pictures, *, shards=3, each=6, extra=()):
    """Shards with a manifest; every other sample has a record of its own."""
    folder.mkdir()
    parts = []
    for shard in range(shards):
        rows = [
            stored(pictures, n, **({"json": {"number": n}} if n % 2 else {}))
            for n in range(shard * each, (shard + 1) * each)
        ]
        parts.append(write_shard(folder / f"shard-{shard:06d}.tar", rows + (list(extra) if shard == 1 else [])))
    total = sum(part["samples"] for part in parts)
    write_json(folder / "manifest.json", {"version": 1, "samples": total, "shards": parts})
    return folder


def write_pictures(folder, pictures):
    (folder / "sub").mkdir(parents=True)
    for number, (name, content) in enumerate(pictures.items()):
        stem = folder / "sub" / name if number % 2 else folder / name
        stem.with_suffix(".jpg").write_bytes(content)
    (folder / "astronaut.json").write_text('{"author": "NASA"}')
    return folder


def find(path, *, workers=0, detector=DETECTOR):
    return FaceFinding(str(path), detector=detector).run(workers=workers)


def tree(path):
    """Every file under a folder by its content, without the indices that reading leaves behind."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and ".tar.index.json" not in file.name and "counts" not in file.name
    }


def records(path):
    source = open_source(SourceConfig(path=str(path)))
    raw = [source.read(index) for index in range(sum(source.shard_sizes))]
    return {one.key: json.loads(one.record) if one.record else {} for one in raw}


def test_records_and_index_of_shards_tell_who_has_a_face(tmp_path, pictures):
    folder = write_set(tmp_path / "shards", pictures)
    before = {key: open_source(SourceConfig(path=str(folder))).read(int(key)).image for key in records(folder)}
    report = find(folder)
    assert (report.samples, report.with_faces, report.faces, report.written) == (18, 5, 5, 18)
    source = open_source(SourceConfig(path=str(folder)))
    for index, (key, record) in enumerate(records(folder).items()):
        faces = record["faces"]
        assert faces["count"] == len(faces["boxes"]) == len(faces["scores"]) == (index % 4 == 0)
        assert faces["detector"] == DETECTOR.name and record.get("number") == (index if index % 2 else None)
        assert source.read(index).image == before[key] and source.read(index).text == b"a photograph"
    x, y, width, height = records(folder)["0000"]["faces"]["boxes"][0]
    # her face in the picture of 512 pixels, by hand: 165..275, 60..190
    assert 165 < 4 * (x + width / 2) < 275 and 60 < 4 * (y + height / 2) < 190
    having = np.concatenate(faces_of_source(source, path=str(folder)))
    assert having.tolist() == [index % 4 == 0 for index in range(18)]


def test_manifest_and_training_still_hold_afterwards(tmp_path, pictures):
    folder = write_set(tmp_path / "shards", pictures)
    find(folder)
    inspection = inspect(str(folder), pictures=0)
    assert inspection.manifest.holds and inspection.manifest.hashed == 3 and not inspection.unusable
    assert inspection.contents.counts["faces_known"] == 18 and inspection.contents.counts["faces"] == 5
    assert main(["inspect-shards", str(folder), "--image_size", "16", "--batch_size", "2"]) == 0


def test_a_second_run_changes_nothing(tmp_path, pictures):
    for path in (write_set(tmp_path / "shards", pictures), write_pictures(tmp_path / "pictures", pictures)):
        find(path)
        stamps = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
        again = find(path)
        assert again.written == 0 and again.with_faces
        assert stamps == {file: file.stat().st_mtime_ns for file in stamps}
        assert {file for file in path.rglob("*") if file.is_file()} - set(stamps) == set() and not (
            path / ".faces"
        ).exists()


def test_any_number_of_processes_writes_the_same(tmp_path, pictures):
    write_set(tmp_path / "0", pictures)
    shutil.copytree(tmp_path / "0", tmp_path / "2")
    find(tmp_path / "0")
    find(tmp_path / "2", workers=2)
    assert tree(tmp_path / "0") == tree(tmp_path / "2")


def test_a_folder_gets_records_beside_its_pictures(tmp_path, pictures):
    folder = write_pictures(tmp_path / "pictures", pictures)
    (folder / "cat.png").write_bytes(b"nothing")
    Image.new("RGB", (40, 40)).save(folder / "astronaut.png")
    report = find(folder)
    assert (report.samples, report.with_faces, report.written) == (6, 1, 3)
    # astronaut.jpg and astronaut.png share one record
    assert report.kept == {"shared_record": 2} and report.unknown == {"not_a_picture": 1}
    assert json.loads((folder / "astronaut.json").read_text()) == {"author": "NASA"}
    assert json.loads((folder / "sub" / "rocket.json").read_text())["faces"]["count"] == 0
    assert not (folder / "cat.json").exists()
    source = open_source(SourceConfig(path=str(folder)))
    (having,) = faces_of_source(source, path="x")
    assert [source.files[index] for index in np.flatnonzero(having)] == ["astronaut.jpg"]


def test_bad_samples_are_named_and_kept(tmp_path, pictures):
    bad = [
        sample("zero", b"", txt=b"x"),
        sample("cut", pictures["cat"][:900]),
        sample("record", pictures["astronaut"], json=b"{broken"),
        {"__key__": "alone", "txt": b"a caption alone"},
        sample("list", pictures["astronaut"], json=[1, 2]),
    ]
    folder = write_set(tmp_path / "shards", pictures, extra=bad)
    report = find(folder, workers=2)
    assert report.unknown == {"empty": 1, "truncated": 1, "bad_record": 1, "without_picture": 1}
    lines = [json.loads(line) for line in (folder / FACE_REPORT_NAME).read_text().splitlines()]
    assert [line["key"] for line in lines] == ["zero", "cut", "record", "alone"]
    source = open_source(SourceConfig(path=str(folder)))
    assert sum(source.shard_sizes) == 23 and source.read(14).record == b"{broken"
    found = json.loads(source.read(16).record)
    assert found["value"] == [1, 2] and found["faces"]["count"] == 1
    assert inspect(str(folder), pictures=0).manifest.holds


def test_a_shard_that_cannot_be_rewritten_without_loss_is_left_as_it_is(tmp_path, pictures):
    folder = write_set(tmp_path / "shards", pictures)
    damaged, odd = (folder / f"shard-00000{number}.tar" for number in (0, 1))
    damaged.write_bytes(damaged.read_bytes()[:-30_000])
    with tarfile.open(odd, "a") as archive:
        archive.addfile(tarfile.TarInfo("README"))
    (folder / "manifest.json").unlink()
    contents = [path.read_bytes() for path in (damaged, odd)]
    report = find(folder)
    assert [path.read_bytes() for path in (damaged, odd)] == contents
    assert report.kept["not_rewritten"] >= 6 and report.written == 6
    lines = [json.loads(line) for line in (folder / FACE_REPORT_NAME).read_text().splitlines()]
    assert {line["detail"] for line in lines if "kept" in line} >= {"it holds files that belong to no sample"}
    # training can upsample all the same
    assert faces_of_source(open_source(SourceConfig(path=str(folder))), path="x")[1].tolist()[:3] == [0, 0, 1]


def test_another_detector_looks_again_and_codes_keep_what_is_known(tmp_path, pictures):
    folder = write_set(tmp_path / "shards", pictures, shards=1)
    find(folder)
    assert find(folder, detector=LbpFaces(neighbours=9)).written == 6
    assert records(folder)["0000"]["faces"]["detector"] == LbpFaces(neighbours=9).name
    codes = tmp_path / "codes"
    codes.mkdir()
    rows = [{"__key__": key, "codes.npy": b"-", "json": json.dumps(record)} for key, record in records(folder).items()]
    write_shard(codes / "0.tar", [{**row, "json": row["json"].encode()} for row in rows])
    report = find(codes)
    assert (report.written, report.with_faces) == (0, 2) and not report.unknown


def test_an_index_of_other_data_is_refused_with_a_remedy(tmp_path, pictures):
    folder = write_set(tmp_path / "shards", pictures)

    def faces():
        return faces_of_source(open_source(SourceConfig(path=str(folder))), path=str(folder))

    with pytest.raises(ValueError, match=r"shard-000000\.tar' is in no face index.*Run `tokenflow find-faces"):
        faces()
    find(str(folder / "shard-00000[01].tar"))
    assert set(read_face_index(folder)) == {"shard-000000.tar", "shard-000001.tar"}
    find(str(folder / "shard-000002.tar"))
    assert [len(part) for part in faces()] == [6, 6, 6]
    write_shard(folder / "shard-000001.tar", [stored(pictures, 1)])
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has changed since its faces were looked for: 1 samples .*find-faces"):
        faces()
    (folder / FACE_INDEX_NAME).write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        faces()


class Deadly:
    """A detector that ends its process at pictures of one kind."""

    name = "deadly"

    def find(self, picture):
        if picture.mean() < 50:
            os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_a_process_that_dies_costs_its_sample_and_no_more(tmp_path, pictures):
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, format="JPEG")
    folder = write_set(tmp_path / "shards", pictures, extra=[sample("black", stream.getvalue())])
    report = find(folder, workers=2, detector=Deadly())
    assert report.unknown == {"crashed": 1} and report.written == 18


def slowly(path):
    finding = FaceFinding(str(path), detector=DETECTOR)
    finding.run(progress=lambda samples: time.sleep(0.02))


def test_killed_at_any_moment_and_run_again_it_is_as_if_unbroken(tmp_path):
    small = {name: jpeg(name, size=96) for name in NAMES}
    start, out = write_set(tmp_path / "start", small, shards=4, each=5), tmp_path / "out"
    for copied in ("whole", "out"):
        shutil.copytree(start, tmp_path / copied)
    find(tmp_path / "whole")
    original, whole = tree(start), tree(tmp_path / "whole")
    rng, kills = random.Random(0), 0
    while kills < 10:
        process = multiprocessing.get_context("fork").Process(target=slowly, args=(out,))
        process.start()
        process.join(rng.uniform(0.02, 0.4))
        process.kill()
        process.join()
        if process.exitcode == 0:
            # it finished before its moment came: begin another
            assert tree(out) == whole
            shutil.rmtree(out)
            shutil.copytree(start, out)
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        for path in out.glob("shard-*.tar"):
            # the old one or the new one, always whole
            assert hashlib.sha256(path.read_bytes()).hexdigest() in (original[path.name], whole[path.name])
    find(out)
    assert tree(out) == whole


@pytest.mark.parametrize("moment", ["before the rename", "before the manifest"])
def test_a_kill_around_the_rename_leaves_a_manifest_that_holds(tmp_path, pictures, moment, monkeypatch):
    folder = write_set(tmp_path / "shards", pictures, shards=1)
    from tokenflow.data import face_records

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(face_records, "_rewrite" if moment == "before the rename" else "_set_entry", stop)
    with pytest.raises(KeyboardInterrupt):
        find(folder)
    monkeypatch.undo()
    find(folder)
    assert inspect(str(folder), pictures=0).manifest.holds and not (folder / ".faces").exists()


def test_the_command_reports_and_a_dry_run_writes_nothing(tmp_path, pictures, capsys):
    folder = write_pictures(tmp_path / "pictures", pictures)
    before = tree(folder)
    assert main(["find-faces", str(folder), "--dry_run"]) == 0
    assert "1 have faces" in capsys.readouterr().out and tree(folder) == before
    assert main(["find-faces", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 4 samples have faces (25.0 %)" in printed
    assert "50.0 % of the time, each 3.00 times as often as one without" in printed
    assert main(["find-faces", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["share"] == 0.25
    assert main(["find-faces", str(folder), "--detector", "yunet"]) == 2
    assert "yunet" in capsys.readouterr().err

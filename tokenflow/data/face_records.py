"""Faces on their way into records: the `.json` of samples in shards, or beside the pictures of a folder.

A shard is written anew beside its place and renamed; one whose records say it all already is not touched. What is done
is noted in a hidden folder beside the shards, which goes when everything is.
"""

import glob
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.face_index import (
    FACE_INDEX_NAME,
    MOST_FACES,
    WHOLE_FOLDER,
    ShardFaces,
    face_index_text,
    folder_stamp,
    read_face_index,
    shard_stamp,
)
from tokenflow.data.face_search import FacesOf
from tokenflow.data.files import locked, write_json, write_whole
from tokenflow.data.folders import FolderSource
from tokenflow.data.manifest_check import file_digest
from tokenflow.data.recaption_shards import read_shard, safe_stored_key
from tokenflow.data.shard_writer import ShardEntry, ShardWriter
from tokenflow.data.shards import ShardSource, index_shard

FACE_REPORT_NAME = "faces.report.jsonl"
_FOLDER = ".faces"


@dataclass(kw_only=True)
class FaceCounts:
    """What became of some samples; only `written` differs when the same is done again."""

    written: int = 0
    """Records that were written or changed."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Samples that cannot be looked at, by the code of the reason."""
    kept: Counter[str] = field(default_factory=Counter)
    """Samples whose faces stand in the index alone, by the code of the reason."""
    lines: list[dict[str, str]] = field(default_factory=list)
    """Of the report."""

    def add(self, other: "FaceCounts") -> None:
        """Count the samples of `other` too."""
        self.written += other.written
        self.unknown += other.unknown
        self.kept += other.kept
        self.lines += other.lines

    def note(self, found: FacesOf, *, key: str, where: str) -> None:
        """Count a sample that cannot be looked at."""
        if found.reason:
            self.unknown[found.reason] += 1
            self.lines.append({"key": key, "where": where, "unknown": found.reason, "detail": found.detail})

    def keep(self, reason: str, samples: int, *, where: str, detail: str) -> None:
        """Count samples whose records stay as they are."""
        self.kept[reason] += samples
        self.lines.append({"key": f"{samples} samples", "where": where, "kept": reason, "detail": detail})


class FaceRecords(Protocol):
    """Where faces are written to: `with records: records.add(...) ...; records.finish()`."""

    def __enter__(self) -> "FaceRecords":
        """Holds the place against other processes, and continues where an earlier one stopped."""

    def __exit__(self, *_: object) -> None: ...

    def done(self, shard: int) -> bool:
        """Whether an earlier, interrupted run finished that shard."""

    def add(self, shard: int, start: int, found: Sequence[FacesOf]) -> None:
        """The next samples of a shard, from number `start` in it on."""

    def finish(self) -> tuple[dict[str, ShardFaces], FaceCounts]:
        """Write index and report; returns the entries of all samples, and what became of them."""


class ShardRecords:
    """The records inside shards, in one or several folders."""

    def __init__(self, source: ShardSource, *, detector: str):
        self._source = source
        self._detector = detector
        self._folders = sorted({os.path.dirname(path) for path in source.paths})
        self._found: list[FacesOf] = []
        self._stack = ExitStack()

    def __enter__(self) -> "ShardRecords":
        with ExitStack() as stack:
            for folder in self._folders:
                hidden = Path(folder) / _FOLDER
                hidden.mkdir(exist_ok=True)
                stack.enter_context(locked(hidden / "lock", what=folder))
                _clear(Path(folder), (MANIFEST_NAME, FACE_INDEX_NAME, FACE_REPORT_NAME))
            _clear(Path(), self._source.paths)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def done(self, shard: int) -> bool:
        """Whether an earlier, interrupted run finished that shard."""
        part = self._part(shard)
        path = self._source.paths[shard]
        return part is not None and (part["faces"]["stamp"], part["faces"]["detector"]) == (
            shard_stamp(path),
            self._detector,
        )

    def add(self, shard: int, start: int, found: Sequence[FacesOf]) -> None:
        """The next samples of a shard; with its last ones, it is written."""
        assert start == len(self._found)
        self._found += found
        if len(self._found) == self._source.shard_sizes[shard]:
            self._complete(shard, self._found)
            self._found = []

    def _complete(self, shard: int, found: list[FacesOf]) -> None:
        path, note = Path(self._source.paths[shard]), self._note(shard)
        counts = FaceCounts()
        samples = index_shard(str(path))
        for number, sample in enumerate(found):
            key = samples[number][0] if number < len(samples) else f"sample {number}"
            counts.note(sample, key=key, where=str(path))
        fresh = sum(sample.faces is not None and not sample.stands for sample in found)
        if fresh and (obstacle := _obstacle(path)):
            counts.keep("not_rewritten", fresh, where=str(path), detail=obstacle)
        elif fresh:
            # from here on the shard may be new and its manifest's entry old
            write_json(note, {"begun": True})
            _set_entry(path, _rewrite(path, found))
            counts.written = fresh
            # so that the next start, of training or of this, need not
            index_shard(str(path))
        elif note.is_file():
            entry = ShardEntry(
                name=path.name, samples=len(samples), bytes=path.stat().st_size, sha256=file_digest(path)
            )
            _set_entry(path, entry)
        many = np.array([min(sample.count, MOST_FACES) for sample in found], dtype=np.uint8)
        faces = ShardFaces(counts=many, stamp=shard_stamp(str(path)), detector=self._detector)
        write_json(note, {"faces": faces.to_json(), "counts": vars(counts)})

    def finish(self) -> tuple[dict[str, ShardFaces], FaceCounts]:
        """Write index and report of every folder; returns the entries of all samples, and what became of them."""
        entries: dict[str, ShardFaces] = {}
        total = FaceCounts()
        for folder in self._folders:
            mine = {}
            here = FaceCounts()
            for shard, path in enumerate(self._source.paths):
                if os.path.dirname(path) == folder and (part := self._part(shard)) is not None:
                    mine[os.path.basename(path)] = entries[path] = ShardFaces.from_json(part["faces"])
                    here.add(_counts_of(part["counts"]))
            others = {
                name: entry
                for name, entry in read_face_index(folder).items()
                if name not in mine and os.path.isfile(os.path.join(folder, name))
            }
            _write_index(Path(folder), others | mine, lines=here.lines)
            total.add(here)
        for folder in self._folders:
            shutil.rmtree(os.path.join(folder, _FOLDER), ignore_errors=True)
        return entries, total

    def _note(self, shard: int) -> Path:
        path = Path(self._source.paths[shard])
        return path.parent / _FOLDER / f"{path.name}.json"

    def _part(self, shard: int) -> dict[str, Any] | None:
        """What is noted of a finished shard."""
        note = self._note(shard)
        part = json.loads(note.read_text()) if note.is_file() else {}
        return part if "faces" in part else None


class FolderRecords:
    """The records beside the pictures of a folder."""

    def __init__(self, source: FolderSource, *, detector: str):
        self._source = source
        self._detector = detector
        keys = Counter(os.path.splitext(name)[0] for name in source.files)
        self._shared = {key for key, count in keys.items() if count > 1}
        self._many: list[int] = []
        self._counts = FaceCounts()
        self._stack = ExitStack()

    def __enter__(self) -> "FolderRecords":
        hidden = Path(self._source.folder) / _FOLDER
        hidden.mkdir(exist_ok=True)
        self._stack.enter_context(locked(hidden / "lock", what=self._source.folder))
        _clear(Path(self._source.folder), (FACE_INDEX_NAME, FACE_REPORT_NAME))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def done(self, shard: int) -> bool:
        """Never as a whole: records that are there already say so themselves."""
        return False

    def add(self, shard: int, start: int, found: Sequence[FacesOf]) -> None:
        """Write the records of the next pictures."""
        assert start == len(self._many)
        for number, sample in enumerate(found, start):
            key, where = self._source.describe(number)
            self._many.append(min(sample.count, MOST_FACES))
            self._counts.note(sample, key=key, where=where)
            if sample.faces is None or sample.stands:
                continue
            if key in self._shared:
                self._counts.keep("shared_record", 1, where=where, detail="another picture has the same .json")
                continue
            path = Path(self._source.folder) / f"{key}.json"
            record = json.loads(path.read_bytes()) if path.is_file() else {}
            write_whole(path, json.dumps(_with_faces(record, sample.faces)))
            self._counts.written += 1

    def finish(self) -> tuple[dict[str, ShardFaces], FaceCounts]:
        """Write index and report; returns the entry of the pictures, and what became of them."""
        folder, files = self._source.folder, self._source.files
        many = np.array(self._many, dtype=np.uint8)
        entries = {WHOLE_FOLDER: ShardFaces(counts=many, stamp=folder_stamp(files), detector=self._detector)}
        _write_index(Path(folder), entries, lines=self._counts.lines)
        shutil.rmtree(os.path.join(folder, _FOLDER), ignore_errors=True)
        return entries, self._counts


def _clear(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process left of these files before they were whole."""
    for path in (folder / name for name in names):
        for left in path.parent.glob(f".{glob.escape(path.name)}*.partial"):
            if not left.name.startswith(f".{path.name}.index.json"):
                left.unlink(missing_ok=True)


def _obstacle(path: Path) -> str:
    """Why a shard cannot be written anew without a loss; empty where it can."""
    samples = index_shard(str(path))
    if not all(members for _, members in samples):
        return "the tar is damaged"
    if any(key == other for (key, _), (other, _) in pairwise(samples)):
        return "samples that follow each other have the same key"
    try:
        with tarfile.open(path, "r:") as archive:
            files = sum(member.isreg() for member in archive)
    except (tarfile.TarError, EOFError):
        return "the tar is damaged"
    if files != sum(len(members) for _, members in samples):
        return "it holds files that belong to no sample"
    return ""


def _rewrite(path: Path, found: Iterable[FacesOf]) -> ShardEntry:
    with ShardWriter(path) as writer:
        for stored, sample in zip(read_shard(str(path)), found, strict=True):
            members = stored.members
            if sample.faces is not None and not sample.stands:
                record = _with_faces(stored.record or {}, sample.faces)
                members = members | {"json": json.dumps(record, separators=(",", ":")).encode()}
            writer.add(safe_stored_key(stored), members)
    assert writer.entry is not None
    return writer.entry


def _with_faces(record: Any, faces: dict[str, Any]) -> dict[str, Any]:
    # what is no object becomes {"value": ...}, as in training
    return (record if isinstance(record, dict) else {"value": record}) | {"faces": faces}


def _set_entry(path: Path, entry: ShardEntry) -> None:
    """Make the manifest beside a shard, if there is one that lists it, say what the shard is now."""
    manifest = path.parent / MANIFEST_NAME
    if not manifest.is_file():
        return
    content = json.loads(manifest.read_text())
    for listed in content["shards"]:
        if listed["name"] == entry.name:
            listed.update({name: value for name, value in entry.to_json().items() if name in listed})
    if "bytes" in content:
        content["bytes"] = sum(listed["bytes"] for listed in content["shards"])
    _write_if_new(manifest, json.dumps(content, indent=1) + "\n")


def _write_index(folder: Path, entries: dict[str, ShardFaces], *, lines: list[dict[str, str]]) -> None:
    _write_if_new(folder / FACE_REPORT_NAME, "".join(json.dumps(line) + "\n" for line in lines))
    _write_if_new(folder / FACE_INDEX_NAME, face_index_text(entries))


def _write_if_new(path: Path, content: str) -> None:
    """So that doing it all again leaves no trace."""
    if not path.is_file() or path.read_text() != content:
        write_whole(path, content)


def _counts_of(content: dict[str, Any]) -> FaceCounts:
    counted = {name: Counter(content[name]) for name in ("unknown", "kept")}
    return FaceCounts(written=content["written"], lines=content["lines"], **counted)

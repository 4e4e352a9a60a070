"""How far the making of a set of shards is, kept beside them so that a killed process loses one shard at most.

Every finished shard has a part in a hidden folder: its entry in the manifest, how much of the input it used up, what
was counted, and what is needed to find later duplicates. The manifest is put together from the parts and appears last;
then the hidden folder goes.
"""

import base64
import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.files import locked, write_json, write_whole
from tokenflow.data.manifest import write_manifest
from tokenflow.data.settings import first_difference
from tokenflow.data.shard_writer import ShardEntry

_FOLDER = ".progress"
_SETTINGS = "settings.json"
_SEEN = struct.Struct("<8s16s?16s")
Seen = tuple[bytes, bytes, int | None]
"""(hash of the key, hash of the pixels, gradient hash) of a written sample."""


@dataclass(kw_only=True)
class Part:
    """What is known of one shard, and of the input between it and the one before."""

    counts: Counter[str] = field(default_factory=Counter)
    """written, repeated, dropped/REASON, changed/CODE."""
    lines: list[dict[str, str]] = field(default_factory=list)
    """Of the report: samples that were left out or mended."""
    seen: list[Seen] = field(default_factory=list)
    """Of its samples, in order."""
    stop: int = 0
    """Position in the input after the last one that it used up."""
    entry: ShardEntry | None = None
    """None where no sample was left to write."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        assert self.entry is not None
        packed = b"".join(
            _SEEN.pack(key, pixels, gradients is not None, (gradients or 0).to_bytes(16, "big"))
            for key, pixels, gradients in self.seen
        )
        return {
            "entry": self.entry.to_json(),
            "stop": self.stop,
            "counts": dict(self.counts),
            "lines": self.lines,
            "seen": base64.b64encode(packed).decode(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Part":
        """The part that `to_json` described."""
        return cls(
            counts=Counter(content["counts"]),
            lines=content["lines"],
            seen=[
                (key, pixels, int.from_bytes(gradients, "big") if known else None)
                for key, pixels, known, gradients in _SEEN.iter_unpack(base64.b64decode(content["seen"]))
            ],
            stop=content["stop"],
            entry=ShardEntry(**content["entry"]),
        )


class ShardFolder:
    """A folder that a set of shards is made in, by one process at a time."""

    def __init__(self, folder: str | Path, *, settings: dict[str, Any]):
        """Look at a folder, which need not exist yet; writes nothing.

        Raises:
            ValueError: It holds shards made with other settings, or by something else.
        """
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self._hidden = self.folder / _FOLDER
        for path, name in ((self.folder / MANIFEST_NAME, "settings"), (self._hidden / _SETTINGS, None)):
            if path.is_file():
                content = json.loads(path.read_text())
                self._compare((content.get(name) or {}) if name else content, path)
                return
        if self.folder.is_dir() and any(self.folder.glob("*.tar")):
            raise ValueError(
                f"{str(self.folder)!r} holds shards that make-shards did not make; expected an empty or new folder. "
                "Choose another for --out"
            )

    def _compare(self, stored: dict[str, Any], path: Path) -> None:
        if difference := first_difference(self.settings, stored):
            raise ValueError(
                f"{str(self.folder)!r} was begun with other settings: {difference} ({path.name}). Give the same "
                "settings to continue, or another folder for --out"
            )

    def manifest(self) -> dict[str, Any] | None:
        """That of a finished set all of whose shards are there."""
        path = self.folder / MANIFEST_NAME
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        whole = all(_has_size(self.folder / entry["name"], entry["bytes"]) for entry in content["shards"])
        return content if whole else None

    def parts(self) -> Iterator[Part]:
        """The finished shards, from the first to the last before one that is missing."""
        number = 0
        while (path := self._part_path(number)).is_file():
            part = Part.from_json(json.loads(path.read_text()))
            assert part.entry is not None
            if not _has_size(self.folder / part.entry.name, part.entry.bytes):
                return
            yield part
            number += 1

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder against other processes, and begins or continues it.

        Raises:
            ValueError: Another process is at it.
        """
        self._hidden.mkdir(parents=True, exist_ok=True)
        with locked(self._hidden / "lock", what=str(self.folder)):
            for left in (*self.folder.glob(".*.partial"), *self._hidden.glob(".*.partial")):
                left.unlink(missing_ok=True)
            write_json(self._hidden / _SETTINGS, self.settings)
            yield

    def save(self, number: int, part: Part) -> None:
        """Note a shard that is complete under its final name."""
        write_whole(self._part_path(number), json.dumps(part.to_json(), separators=(",", ":")))

    def finish(self, parts: Iterable[Part]) -> dict[str, Any]:
        """Write report and manifest, put away what is no longer needed; returns the manifest."""
        parts = list(parts)
        counts: Counter[str] = sum((part.counts for part in parts), Counter())
        entries = [part.entry for part in parts if part.entry is not None]
        names = {entry.name for entry in entries}
        for path in self.folder.glob("shard-*.tar"):
            if path.name not in names:
                path.unlink()
        lines = (line for part in parts for line in part.lines)
        manifest = write_manifest(self.folder, entries, lines=lines, settings=self.settings, report=_report(counts))
        self.put_away()
        return manifest

    def put_away(self) -> None:
        """Remove the hidden folder of a finished set."""
        shutil.rmtree(self._hidden, ignore_errors=True)

    def _part_path(self, number: int) -> Path:
        return self._hidden / f"{number:06d}.json"


def _report(counts: Counter[str]) -> dict[str, Any]:
    report: dict[str, Any] = {name: counts[name] for name in ("read", "written", "repeated")}
    for group in ("dropped", "changed"):
        found = sorted(name for name in counts if name.startswith(f"{group}/"))
        report[group] = {name.partition("/")[2]: counts[name] for name in found}
    return report


def _has_size(path: Path, size: int) -> bool:
    try:
        return os.path.getsize(path) == size
    except OSError:
        return False

"""How many faces every sample of a source has, in one small file beside its shards: what training upsamples by.

`faces.index.json` has an entry for every shard, or a single one for a folder of pictures: a byte a sample, compressed.
`tokenflow find-faces` writes it.
"""

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenflow.data.folders import FolderSource
from tokenflow.data.samples import Source
from tokenflow.data.shards import ShardSource

FACE_INDEX_NAME = "faces.index.json"
WHOLE_FOLDER = "."
"""Name of the single entry of a folder of pictures."""
MOST_FACES = 255
"""Samples with more are entered as having so many."""
_VERSION = 1
_THREADS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardFaces:
    """The faces of one shard's samples, or of a folder's pictures."""

    counts: np.ndarray
    """uint8 [samples]; 0 also where a sample cannot be read."""
    stamp: str
    """What must be unchanged for the counts to hold: the size of a shard, or a hash of a folder's file names."""
    detector: str
    """Name of the detector that found them."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        packed = base64.b64encode(zlib.compress(self.counts.tobytes(), 9)).decode()
        return {
            "samples": len(self.counts),
            "with_faces": int(np.count_nonzero(self.counts)),
            "stamp": self.stamp,
            "detector": self.detector,
            "counts": packed,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ShardFaces":
        """The entry that `to_json` described."""
        counts = np.frombuffer(zlib.decompress(base64.b64decode(content["counts"])), np.uint8)
        if len(counts) != content["samples"]:
            raise ValueError(f"{len(counts)} counts for {content['samples']} samples")
        return cls(counts=counts, stamp=content["stamp"], detector=content["detector"])


def shard_stamp(path: str) -> str:
    """Of a shard as it is on disk."""
    return f"{os.path.getsize(path)} bytes"


def folder_stamp(files: Sequence[str]) -> str:
    """Of a folder with these pictures."""
    return hashlib.sha256("\n".join(files).encode("utf-8", errors="replace")).hexdigest()[:16]


def read_face_index(folder: str | Path) -> dict[str, ShardFaces]:
    """The entries of a folder's index by name; none where there is no index.

    Raises:
        ValueError: It cannot be read.
    """
    path = Path(folder) / FACE_INDEX_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}; expected {_VERSION}")
        return {name: ShardFaces.from_json(entry) for name, entry in content["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(
            f"the face index {str(path)!r} cannot be read: {error}. Remove it and run `tokenflow find-faces` again"
        ) from error


def face_index_text(entries: dict[str, ShardFaces]) -> str:
    """The content of an index with these entries."""
    content = {
        "version": _VERSION,
        "samples": sum(len(entry.counts) for entry in entries.values()),
        "with_faces": sum(int(np.count_nonzero(entry.counts)) for entry in entries.values()),
        "faces": sum(int(entry.counts.sum(dtype=np.int64)) for entry in entries.values()),
        "shards": {name: entries[name].to_json() for name in sorted(entries)},
    }
    return json.dumps(content, indent=1) + "\n"


def faces_of_source(source: Source, *, path: str) -> list[np.ndarray]:
    """Whether each sample has a face, bool [samples] a shard of the source, from the indices beside them.

    Args:
        source: What is read.
        path: Its path as the user wrote it, for messages.

    Raises:
        ValueError: There is no index, or it is of other shards.
    """
    remedy = f"Run `tokenflow find-faces {path}`, or leave face_factor at 1"
    if isinstance(source, FolderSource):
        parts = [(source.folder, WHOLE_FOLDER, folder_stamp(source.files))]
    else:
        assert isinstance(source, ShardSource)
        with ThreadPoolExecutor(_THREADS) as pool:
            stamps = pool.map(shard_stamp, source.paths)
        names = map(os.path.split, source.paths)
        parts = [(folder, name, stamp) for (folder, name), stamp in zip(names, stamps, strict=True)]
    indices = {folder: read_face_index(folder) for folder in {folder for folder, _, _ in parts}}
    found = []
    for (folder, name, stamp), size in zip(parts, source.shard_sizes, strict=True):
        entry = indices[folder].get(name)
        where = folder if name == WHOLE_FOLDER else os.path.join(folder, name)
        if entry is None:
            raise ValueError(f"{where!r} is in no face index ({os.path.join(folder, FACE_INDEX_NAME)!r}). {remedy}")
        if entry.stamp != stamp or len(entry.counts) != size:
            raise ValueError(
                f"{where!r} has changed since its faces were looked for: {size} samples ({stamp}), the face index has "
                f"{len(entry.counts)} ({entry.stamp}). {remedy}"
            )
        found.append(entry.counts > 0)
    return found

"""Random access to webdataset shards: a small index of a tar, kept beside it, in place of reading it from the start.

A sample is a run of members with the same name up to the first dot of the file name, as in webdataset. The index of
`x.tar` is `x.tar.index.json`; it is made at first use (in memory where the folder cannot be written) and made again
when the tar has changed. Sample counts are kept apart (`counts`), so that a run over many shards starts without opening
them.
"""

import difflib
import glob
import json
import logging
import os
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import braceexpand

from tokenflow.data.counts import count_samples
from tokenflow.data.files import write_beside
from tokenflow.data.memo import Memo
from tokenflow.data.samples import CODES_EXTENSION, IMAGE_EXTENSIONS, BadSample, RawSample

logger = logging.getLogger(__name__)
_INDEX_VERSION = 1
_OPEN_SHARDS = 32
_GAP = 16384
Samples = list[tuple[str, dict[str, tuple[int, int]]]]


def expand_shards(pattern: str) -> list[str]:
    """Shard paths of a pattern: a .tar, a folder of them, wildcards, or braces as in `data/{000..127}.tar`.

    Raises ValueError when nothing matches, when the folder or a named shard is missing, or when one is compressed.
    """
    found: list[str] = []
    for name in braceexpand.braceexpand(pattern):
        if os.path.isdir(name):
            matches = sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
        elif glob.has_magic(name) and not os.path.exists(name):
            matches = sorted(glob.glob(name))
        elif os.path.exists(name):
            matches = [name]
        else:
            raise ValueError(_missing(name, pattern))
        found.extend(matches)
    if not found:
        raise ValueError(
            f"no .tar shards match {pattern!r}; expected a folder of .tar files, a .tar, or a pattern of them"
        )
    packed = [name for name in found if not name.endswith(".tar")]
    if packed:
        raise ValueError(f"{packed[0]!r} is not a plain .tar; random access needs uncompressed shards, unpack it first")
    return found


def _missing(name: str, pattern: str) -> str:
    """What to say of a path that does not exist: where it ends, and what there is in its place."""
    if name != pattern:
        return f"shard {name!r} does not exist (from {pattern!r}); check the path and the brace range"
    path = Path(name).absolute()
    while not path.parent.exists():
        path = path.parent
    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    if near:
        found = f"; did you mean {str(path.parent / near[0])!r}?"
    else:
        found = "." if str(path) == name else f"; there is no {str(path)!r}."
    return f"{name!r} does not exist{found} Give a folder of pictures or of .tar shards, a .tar, or a pattern of them"


def index_shard(path: str) -> Samples:
    """(key, {extension: (offset, bytes)}) of every sample of a tar: the index beside it, or its headers."""
    status = os.stat(path)
    stamp = {"version": _INDEX_VERSION, "bytes": status.st_size, "modified": status.st_mtime_ns}
    beside = Path(path + ".index.json")
    if beside.is_file():
        stored = json.loads(beside.read_text())
        if {name: stored.get(name) for name in stamp} == stamp:
            return [(key, {ext: tuple(span) for ext, span in members.items()}) for key, members in stored["samples"]]
    samples = _scan(path, status.st_size)
    write_beside(beside, json.dumps({**stamp, "samples": samples}, separators=(",", ":")))
    return samples


def _scan(path: str, size: int) -> Samples:
    samples: Samples = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not member.isreg() or not dot or not stem or member.name.startswith("__"):
                    continue
                if member.offset_data + member.size > size:
                    break
                key = f"{folder}/{stem}" if folder else stem
                extension = extension.lower()
                if not samples or samples[-1][0] != key or extension in samples[-1][1]:
                    samples.append((key, {}))
                samples[-1][1][extension] = (member.offset_data, member.size)
                # tarfile keeps every header it has seen
                archive.members = []
    except (tarfile.TarError, EOFError) as error:
        logger.warning("shard %s is damaged after %d samples: %s", path, len(samples), error)
        # an empty sample, so that the loader counts and names the damage
        samples.append((f"after-{len(samples)}-samples", {}))
    return samples


class ShardSource:
    """Samples of webdataset shards, in the order of `paths` and of the members in each.

    With `at_least`, only of the first shards that hold so many; the others are not opened.
    """

    def __init__(self, paths: Sequence[str], *, at_least: int | None = None):
        self._indices = Memo(_OPEN_SHARDS)
        self._files = Memo(_OPEN_SHARDS)
        self.shard_sizes = count_samples(paths, count=lambda path: len(index_shard(path)), at_least=at_least)
        self.paths = list(paths[: len(self.shard_sizes)])
        self._ends = list(accumulate(self.shard_sizes))

    def describe(self, index: int) -> tuple[str, str]:
        """(key, shard path) of a sample."""
        shard, offset = self._locate(index)
        samples = self._samples(shard)
        return samples[offset][0] if offset < len(samples) else f"sample {offset}", self.paths[shard]

    def read(self, index: int) -> RawSample:
        """Sample number `index`; raises BadSample when it is missing, cut off, or has neither picture nor codes."""
        shard, offset = self._locate(index)
        samples = self._samples(shard)
        if offset >= len(samples) or not samples[offset][1]:
            raise BadSample("the tar is damaged: it ends before this sample")
        key, members = samples[offset]
        image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
        codes = members.get(CODES_EXTENSION)
        if image is None and codes is None:
            raise BadSample(f"no picture among its members ({', '.join(members)})")
        spans = {"image": image, "codes": codes, "label": members.get("cls")}
        spans |= {"text": members.get("txt"), "record": members.get("json")}
        content = self._read(shard, {name: span for name, span in spans.items() if span is not None})
        return RawSample(key=key, where=self.paths[shard], **{"image": None, **content})

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _samples(self, shard: int) -> Samples:
        return self._indices.get(shard, lambda: index_shard(self.paths[shard]))

    def _read(self, shard: int, spans: dict[str, tuple[int, int]]) -> dict[str, bytes]:
        """The bytes of some members of one sample, in one read where they lie close together."""
        # closed when the cache lets go of it
        stream = self._files.get(shard, lambda: open(self.paths[shard], "rb", buffering=0))  # noqa: SIM115
        start = min(offset for offset, _ in spans.values())
        stop = max(offset + size for offset, size in spans.values())
        if stop - start > sum(size for _, size in spans.values()) + _GAP:
            return {name: _pread(stream, *span) for name, span in spans.items()}
        together = _pread(stream, start, stop - start)
        return {name: together[offset - start : offset - start + size] for name, (offset, size) in spans.items()}


def _pread(stream: Any, offset: int, size: int) -> bytes:
    content = os.pread(stream.fileno(), size, offset)
    if len(content) != size:
        raise BadSample(f"only {len(content)} of its {size} bytes are there: truncated shard?")
    return content

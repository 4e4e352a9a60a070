"""Writes one webdataset shard: bytes that depend on the samples alone, under its final name only when complete."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import webdataset

from tokenflow.data.files import replacing

_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard as the manifest lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def stored_bytes(members: Mapping[str, bytes]) -> int:
    """Bytes that a sample's members take in a tar: a header each, and content in whole blocks."""
    return sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for content in members.values())


class ShardWriter:
    """`with ShardWriter(path) as writer: writer.add(key, members)`; then `writer.entry`.

    When the block ends with an error there is no shard; when the process dies in it, a hidden file at most, which the
    next writer of `path` replaces.
    """

    def __init__(self, path: Path):
        self.path = path
        self.samples = 0
        self.bytes = 0
        """Of the samples so far, without the end of the tar."""
        self.entry: ShardEntry | None = None
        """Of the finished shard."""

    def __enter__(self) -> "ShardWriter":
        with ExitStack() as stack:
            partial = stack.enter_context(replacing(self.path))
            self._stream = _Hashed(stack.enter_context(open(partial, "wb")))
            tar = webdataset.TarWriter(self._stream, encoder=False, mtime=0, user="tokenflow", group="tokenflow")
            self._tar = stack.enter_context(tar)
            # closed in reverse: end of the tar, file, rename
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if error is None:
            self.entry = ShardEntry(
                name=self.path.name,
                samples=self.samples,
                bytes=self._stream.bytes,
                sha256=self._stream.digest.hexdigest(),
            )

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample: a safe key, and contents by extension."""
        self._tar.write({"__key__": key, **members})
        self.samples += 1
        self.bytes += stored_bytes(members)


class _Hashed:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.bytes += len(content)
        return self._file.write(content)

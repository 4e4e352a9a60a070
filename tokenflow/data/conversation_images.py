"""The pictures that conversations name: files of a folder, or members of tar shards, found by name; or their codes."""

import os
import posixpath
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from tokenflow.data.codes import CodesDescription, codes_of_source
from tokenflow.data.config import SourceConfig
from tokenflow.data.memo import Memo
from tokenflow.data.samples import CODES_EXTENSION, BadSample
from tokenflow.data.shards import expand_shards, index_shard
from tokenflow.data.transforms import decode_image

_OPEN_SHARDS = 32
_BESIDE = ("txt", "json", "cls")
"""Members that are no pictures."""


class ImageStore(Protocol):
    """Pictures by name; must be picklable, for worker processes."""

    def read(self, name: str) -> Image.Image | np.ndarray:
        """An RGB picture, or codes int64 [L]. Raises BadSample when there is none of this name, or it is damaged."""


def open_images(path: str | None) -> ImageStore:
    """The pictures of a folder, of a folder of .tar shards, or of a pattern of shards; None where there are none.

    What `tokenflow encode-shards` wrote holds their codes.

    Raises:
        ValueError: The path does not exist, holds no shards, or codes whose encoding was not finished.
    """
    if path is None:
        return NoImages()
    description = codes_of_source(SourceConfig(path=path))
    if description is not None:
        return ImageCodes(path, description)
    if os.path.isdir(path) and not any(name.endswith(".tar") for name in os.listdir(path)):
        return ImageFolder(path)
    return ImageShards(path)


class NoImages:
    """Of a source that names no folder of pictures."""

    def read(self, name: str) -> Image.Image:
        """There are none."""
        raise BadSample(f"it names picture {name!r}, but its source has no images; give their folder or .tar shards")


class ImageFolder:
    """Pictures by their path relative to a folder (an absolute path into the folder will do)."""

    def __init__(self, folder: str):
        self.folder = os.path.abspath(folder)

    def read(self, name: str) -> Image.Image:
        """The picture of a file; files outside the folder are refused."""
        path = os.path.normpath(os.path.join(self.folder, name))
        if os.path.commonpath([self.folder, path]) != self.folder:
            raise BadSample(f"picture {name!r} lies outside {self.folder}")
        try:
            content = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise BadSample(f"picture {path} cannot be read: {error}") from error
        return _decode(content, name)


class ImageShards:
    """Pictures by their member name in tar shards; the first shard that has a name counts.

    Names are kept as sorted 64-bit hashes, 12 bytes a picture, and compared in the shard's own index.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.paths = expand_shards(pattern)
        hashes, shards = [], []
        for number, path in enumerate(self.paths):
            names = [
                _name_hash(_member_name(f"{key}.{extension}"))
                for key, members in index_shard(path)
                for extension in members
                if extension not in _BESIDE
            ]
            hashes.append(np.array(names, dtype=np.uint64))
            shards.append(np.full(len(names), number, dtype=np.int32))
        order = np.argsort(joined := np.concatenate(hashes), kind="stable")
        self._hashes, self._shards = joined[order], np.concatenate(shards)[order]
        self._members = Memo(_OPEN_SHARDS)
        self._files = Memo(_OPEN_SHARDS)

    def read(self, name: str) -> Image.Image | np.ndarray:
        """The picture of a member."""
        return _decode(self._content(_member_name(name)), name)

    def _content(self, name: str) -> bytes:
        wanted = np.uint64(_name_hash(name))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            shard = int(self._shards[place])
            span = self._members.get(shard, lambda: _members(self.paths[shard])).get(name)  # noqa: B023
            if span is not None:
                return self._read(shard, *span)
            place += 1
        raise BadSample(f"there is no picture {name!r} in {self.pattern}")

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path = self.paths[shard]
        # closed when the cache lets go of it
        stream = self._files.get(shard, lambda: open(path, "rb", buffering=0))  # noqa: SIM115
        content = os.pread(stream.fileno(), size, offset)
        if len(content) != size:
            raise BadSample(f"only {len(content)} of the {size} bytes of its picture are in {path}: truncated shard?")
        return content


class ImageCodes(ImageShards):
    """Codes of pictures, by the names that the pictures had."""

    def __init__(self, pattern: str, description: CodesDescription):
        super().__init__(pattern)
        self.description = description

    def read(self, name: str) -> np.ndarray:
        """The codes of a picture, int64 [L]."""
        folder, _, base = posixpath.normpath(name).rpartition("/")
        # as `encode-shards` names them: a dot would end the key
        key = posixpath.splitext(base)[0].replace(".", "_")
        member = _member_name(f"{folder}/{key}.{CODES_EXTENSION}" if folder else f"{key}.{CODES_EXTENSION}")
        try:
            return self.description.unpack(self._content(member))
        except BadSample as error:
            raise BadSample(f"{name}: {error}") from error


def _decode(content: bytes, name: str) -> Image.Image:
    try:
        return decode_image(content)
    except BadSample as error:
        raise BadSample(f"{name}: {error}") from error


def _members(path: str) -> dict[str, tuple[int, int]]:
    return {
        _member_name(f"{key}.{extension}"): span
        for key, members in index_shard(path)
        for extension, span in members.items()
    }


def _member_name(name: str) -> str:
    """A name as the shards' index spells it: no leading `./`, the extension in lower case."""
    folder, _, base = posixpath.normpath(name).rpartition("/")
    stem, dot, extension = base.partition(".")
    base = stem + dot + extension.lower()
    return f"{folder}/{base}" if folder else base


def _name_hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")

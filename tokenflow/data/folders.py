"""A plain folder of pictures, read recursively; the caption of `x.png` is `x.txt` beside it, if any."""

import os
from collections.abc import Sequence
from pathlib import Path

from tokenflow.data.samples import IMAGE_EXTENSIONS, BadSample, RawSample

FOLDER_EXTENSIONS: tuple[str, ...] = (*IMAGE_EXTENSIONS, "bmp", "gif", "tif", "tiff")


class FolderSource:
    """Pictures of a folder in the order of their relative paths, with `x.txt` as caption and `x.json` as record.

    Raises ValueError when the folder does not exist or holds no pictures.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder)
        if not os.path.isdir(self.folder):
            raise ValueError(f"folder {self.folder!r} does not exist; check the path")
        self.files = sorted(_pictures(self.folder))
        if not self.files:
            inside = sorted(path.parent for path in Path(self.folder).glob("*/*.tar"))
            hint = f". There are .tar shards in {str(inside[0])!r}: give that folder" if inside else ""
            raise ValueError(
                f"folder {self.folder!r} holds no pictures; expected files ending in {', '.join(FOLDER_EXTENSIONS)}, "
                f"or .tar shards{hint}"
            )

    @property
    def shard_sizes(self) -> Sequence[int]:
        """A folder is one shard: any file is as near as any other."""
        return [len(self.files)]

    def describe(self, index: int) -> tuple[str, str]:
        """(key, file) of a picture."""
        return os.path.splitext(self.files[index])[0], os.path.join(self.folder, self.files[index])

    def read(self, index: int) -> RawSample:
        """Picture number `index`; raises BadSample when its file cannot be read."""
        key, path = self.describe(index)
        stem = os.path.join(self.folder, key)
        try:
            return RawSample(
                key=key,
                where=path,
                image=Path(path).read_bytes(),
                text=_optional(stem + ".txt"),
                record=_optional(stem + ".json"),
            )
        except OSError as error:
            raise BadSample(f"cannot be read: {error}") from error


def _pictures(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
            for name in names
            if name.rpartition(".")[2].lower() in FOLDER_EXTENSIONS and not name.startswith(".")
        ]
    return found


def _optional(path: str) -> bytes | None:
    return Path(path).read_bytes() if os.path.exists(path) else None

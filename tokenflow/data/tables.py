"""Samples of tables: a column with pictures, or with paths to them, one with captions, and the rest as record."""

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

from tokenflow.data.picture_check import BadPicture
from tokenflow.data.samples import BadSample, RawSample
from tokenflow.data.table_rows import Rows, Text

logger = logging.getLogger(__name__)
_IMAGES = (
    "image", "img", "picture", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp", "image_path", "img_path",
    "file_path", "filepath", "path", "file_name", "filename", "file", "local_path",
)  # fmt: skip
_CAPTIONS = ("caption", "captions", "text", "txt", "prompt", "description", "sentence", "sentences", "title")
_KEYS = ("key", "__key__", "id", "image_id", "uid")


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Which columns of a table hold what."""

    image_column: str | None = None
    """Pictures as bytes, or paths to them; by default the first with a usual name."""
    caption_column: str | None = None
    """By default the first with a usual name, if there is one."""
    images: str | None = None
    """Folder that paths are relative to; by default the table's own."""
    split: str | None = None
    """Of a Hugging Face data set."""


class TableSource:
    """The rows of a table as samples."""

    def __init__(self, rows: Rows, config: TableConfig):
        """Choose the columns.

        Raises:
            ValueError: A column is not there, or none has a usual name.
        """
        self.rows = rows
        self.image_column = self._column("image", config.image_column, self._usual_images())
        self.caption_column = self._column("caption", config.caption_column, _CAPTIONS)
        others = [name for name in rows.columns if name not in (self.image_column, self.caption_column)]
        self._key_column = next((name for name in others if name.lower() in _KEYS), None)
        self._folder = config.images or os.path.dirname(rows.path)
        self.shard_sizes = rows.shard_sizes
        if self.caption_column is None:
            logger.warning(
                "%s has no column of captions (its columns: %s); name one with --caption_column",
                rows.path, ", ".join(rows.columns),
            )  # fmt: skip

    def describe(self, index: int) -> tuple[str, str]:
        """(key, table) of a row."""
        try:
            return self._key(index, self.rows.row(index, [self._key_column or self._image()])), self.rows.path
        except BadSample:
            return self._number(index), self.rows.path

    def read(self, index: int) -> RawSample:
        """Row number `index`; raises BadSample where it cannot be read or its picture is not there."""
        row = self.rows.row(index)
        key = self._key(index, row)
        text, captions = _captions(row.get(self.caption_column) if self.caption_column else None)
        image = self._picture(row[self._image()], row)
        spoken_for = (self.image_column, self.caption_column)
        record = {name: _plain(value) for name, value in row.items() if name not in spoken_for}
        record = {name: value for name, value in record.items() if value is not _DROPPED}
        if len(captions) > 1:
            record["captions"] = captions
        return RawSample(key=key, where=self.rows.path, image=image, text=text, record=json.dumps(record).encode())

    def _image(self) -> str:
        assert self.image_column is not None
        return self.image_column

    def _usual_images(self) -> Sequence[str]:
        # what is declared to be a picture comes before what is called so
        return [*(name.lower() for name in getattr(self.rows, "picture_columns", ())), *_IMAGES]

    def _column(self, what: str, given: str | None, usual: Sequence[str]) -> str | None:
        there = self.rows.columns
        lower = {name.lower(): name for name in reversed(there)}
        found = given if given in there else next((lower[name] for name in usual if name in lower), None)
        if (given is not None and given not in there) or (found is None and what == "image"):
            named = "none of them has a usual name" if given is None else f"none is called {given!r}"
            raise ValueError(
                f"{self.rows.path!r} has the columns {', '.join(there)}; {named}. Give one of them as --{what}_column"
            )
        return found

    def _key(self, index: int, row: dict[str, Any]) -> str:
        value = row.get(self._key_column or self._image())
        if isinstance(value, dict):
            value = value.get("path")
        if value is None or (isinstance(value, bytes) and not isinstance(value, Text)):
            return self._number(index)
        name = os.fsdecode(value) if isinstance(value, bytes) else str(value)
        return (name if self._key_column else os.path.splitext(name)[0]) or self._number(index)

    def _number(self, index: int) -> str:
        return f"{Path(self.rows.path).stem}-{index:09d}"

    def _picture(self, value: Any, row: dict[str, Any]) -> bytes:
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if not isinstance(value, (bytes, str, type(None))):
            raise BadPicture("no_picture", f"its column {self.image_column!r} holds {type(value).__name__}, no picture")
        if value is None or len(value) == 0:
            status = _plain(row.get("status"))
            known = f" (status: {status!r})" if status is not None else ""
            raise BadPicture("no_picture", f"its column {self.image_column!r} is empty{known}")
        return self._file(os.fsdecode(value)) if isinstance(value, (str, Text)) else value

    def _file(self, name: str) -> bytes:
        if name.startswith(("http://", "https://")):
            raise BadPicture("not_downloaded", f"{name} is an address; download the pictures first, as by img2dataset")
        path = os.path.join(self._folder, name)
        try:
            return Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise BadPicture("missing", f"there is no file {path!r}") from error
        except OSError as error:
            raise BadSample(f"cannot be read: {error}") from error


_DROPPED = object()


def _captions(value: Any) -> tuple[bytes | None, list[str]]:
    """(the first caption, all of them)."""
    if value is None or isinstance(value, bytes):
        return value, []
    listed = value if isinstance(value, list) else [value]
    known = [str(caption) for caption in listed if caption is not None]
    return (known[0].encode("utf-8", errors="replace") if known else None), known


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; bytes that are no text are dropped."""
    if isinstance(value, bytes):
        return value.decode(errors="replace") if isinstance(value, Text) else _DROPPED
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [None if (plain := _plain(item)) is _DROPPED else plain for item in value]
    if isinstance(value, dict):
        found = {str(name): _plain(item) for name, item in value.items()}
        return {name: item for name, item in found.items() if item is not _DROPPED}
    return value.isoformat() if isinstance(value, (date, time)) else _shown(value)


def _shown(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else str(value)

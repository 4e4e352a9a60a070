"""Rows of tables by number, whatever file they lie in: CSV and TSV, Parquet, Hugging Face data sets.

All can be sent to worker processes, which open files by themselves.
"""

import codecs
import csv
import importlib
import io
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any, Protocol

from tokenflow.data.memo import Memo
from tokenflow.data.samples import BadSample

TABLE_EXTENSIONS: tuple[str, ...] = (".csv", ".tsv", ".parquet")
_LONGEST_FIELD = 1 << 24
_DELIMITERS = ",;\t|"
_KEPT = 2
_HUB = "hf:"


class Text(bytes):
    """Text as it is stored: its encoding is not known, or not checked."""


class Rows(Protocol):
    """A table; picklable."""

    path: str
    columns: list[str]
    shard_sizes: Sequence[int]
    """Rows that lie near each other on disk."""

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Some columns of a row, by default all; text is `str` or `Text`. Raises BadSample when it cannot be read."""


class CsvRows:
    """A CSV or TSV file with a header."""

    def __init__(self, path: str):
        """Read through the file once, and keep where each row begins.

        Raises:
            ValueError: There is no header, or a quote that never closes.
        """
        self.path = path
        with open(path, "rb") as file:
            start = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path!r} is UTF-16; expected UTF-8. Save it as CSV UTF-8")
        self._starts, self._ends = array("q"), array("q")
        self._delimiter = "\t"
        self.columns: list[str] = []
        self._scan()
        self.shard_sizes: Sequence[int] = [len(self._starts)]
        self._files = Memo(1)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Some columns of a row; raises BadSample where it does not fit the header."""
        # one file object a process: a place in it is not to be shared
        file = self._files.get(os.getpid(), lambda: open(self.path, "rb", buffering=0))  # noqa: SIM115
        start, stop = self._starts[index], self._ends[index]
        lines = io.BytesIO(os.pread(file.fileno(), stop - start, start))
        fields = next(csv.reader(map(_letters, lines), delimiter=self._delimiter), [])
        if len(fields) != len(self.columns):
            raise BadSample(f"row {index + 1} has {len(fields)} fields, the header {len(self.columns)}")
        found = dict(zip(self.columns, fields, strict=True))
        return {name: Text(found[name].encode("latin-1")) for name in columns or self.columns}

    def _scan(self) -> None:
        csv.field_size_limit(_LONGEST_FIELD)
        with open(self.path, "rb") as file:
            place = [0]

            def lines() -> Iterator[str]:
                for line in file:
                    first = not place[0]
                    place[0] += len(line)
                    yield _letters(line.removeprefix(codecs.BOM_UTF8) if first else line)

            header = file.readline()
            if not self.path.endswith(".tsv"):
                self._delimiter = max(_DELIMITERS, key=header.decode("latin-1").count)
            file.seek(0)
            rows = csv.reader(lines(), delimiter=self._delimiter)
            begun = 0
            # the reader takes lines one by one, so that after a row `place` is its end
            try:
                for fields in rows:
                    if fields and not self.columns:
                        self.columns = _header(fields, path=self.path)
                    elif fields:
                        self._starts.append(begun)
                        self._ends.append(place[0])
                    begun = place[0]
            except csv.Error as error:
                raise ValueError(
                    f"{self.path!r}, line {rows.line_num}: {error}; expected CSV. Does a quote not close?"
                ) from error
        if not self.columns:
            raise ValueError(f"{self.path!r} is empty; expected a first line with the names of columns")


def _header(fields: list[str], *, path: str) -> list[str]:
    names = [name.encode("latin-1").decode(errors="replace").strip() for name in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path!r} has columns of the same name: {', '.join(map(repr, twice))}; expected each once")
    return names


def _letters(line: bytes) -> str:
    """A line with every byte as a letter, for delimiters, quotes and line ends are the same in all usual encodings."""
    # a carriage return or a zero inside a line ends the csv module's patience
    end = b"\r\n" if line.endswith(b"\r\n") else line[-1:]
    inside = line[: len(line) - len(end)].replace(b"\r", b" ").replace(b"\0", b" ")
    return (inside + end).decode("latin-1")


class ParquetRows:
    """A Parquet file, read by its row groups."""

    def __init__(self, path: str):
        """Read the file's schema.

        Raises:
            ValueError: It is no Parquet, or pyarrow is not installed.
        """
        self.path = path
        parquet, arrow = _imported("pyarrow.parquet"), _imported("pyarrow")
        try:
            with parquet.ParquetFile(path) as file:
                self.columns: list[str] = file.schema_arrow.names
                groups = range(file.metadata.num_row_groups)
                self.shard_sizes: Sequence[int] = [file.metadata.row_group(group).num_rows for group in groups]
        except arrow.ArrowException as error:
            raise ValueError(f"{path!r} cannot be read: {error}; expected a Parquet file") from error
        self._ends = list(accumulate(self.shard_sizes))
        self._files = Memo(1)
        self._groups = Memo(_KEPT)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Some columns of a row; text of strings as bytes, which need not be good UTF-8."""
        group = bisect_right(self._ends, index)
        wanted = tuple(columns or self.columns)
        key = (os.getpid(), group, wanted)
        table = self._groups.get(key, lambda: self._read(group, wanted))
        place = index - (self._ends[group - 1] if group else 0)
        return {name: _value(table.column(name)[place]) for name in wanted}

    def _read(self, group: int, columns: tuple[str, ...]) -> Any:
        parquet, arrow = _imported("pyarrow.parquet"), _imported("pyarrow")
        # one a process, without threads: those of a parent are not there after a fork
        file = self._files.get(os.getpid(), lambda: parquet.ParquetFile(self.path, pre_buffer=False))
        try:
            return file.read_row_group(group, columns=list(columns), use_threads=False)
        except (arrow.ArrowException, OSError) as error:
            raise BadSample(f"row group {group} cannot be read: {error}") from error


def _value(scalar: Any) -> Any:
    arrow = _imported("pyarrow")
    if scalar.is_valid and (arrow.types.is_string(scalar.type) or arrow.types.is_large_string(scalar.type)):
        return Text(scalar.as_buffer().to_pybytes())
    try:
        return scalar.as_py()
    except (ValueError, arrow.ArrowException) as error:
        raise BadSample(f"a value cannot be read: {error}") from error


class DatasetRows:
    """A Hugging Face data set, its pictures not decoded."""

    def __init__(self, dataset: Any, *, path: str):
        self.path = path
        kind = _imported("datasets").Image
        pictures = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
        for name in pictures:
            dataset = dataset.cast_column(name, kind(decode=False))
        self.columns = list(dataset.features)
        self.picture_columns = pictures
        self.shard_sizes: Sequence[int] = [len(dataset)]
        self._dataset = dataset
        self._narrow = Memo(_KEPT)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Some columns of a row."""
        if columns is None:
            return dict(self._dataset[index])
        narrow = self._narrow.get(tuple(columns), lambda: self._dataset.select_columns(list(columns)))
        return dict(narrow[index])


def is_dataset(path: str) -> bool:
    """Whether a path names a Hugging Face data set: `hf:NAME`, or a folder that `save_to_disk` wrote."""
    one = all(os.path.isfile(os.path.join(path, name)) for name in ("dataset_info.json", "state.json"))
    return path.startswith(_HUB) or one or os.path.isfile(os.path.join(path, "dataset_dict.json"))


def open_dataset(path: str, *, split: str | None) -> DatasetRows:
    """The rows of a data set: a folder of `save_to_disk`, or `hf:NAME` or `hf:NAME:CONFIGURATION` of the hub.

    Args:
        path: As `is_dataset` takes it; a name may be that of a local folder that `load_dataset` reads.
        split: By default the only one; of a name, train.

    Raises:
        ValueError: There is no such split, or `datasets` is not installed.
    """
    datasets = _imported("datasets")
    if path.startswith(_HUB):
        name, _, configuration = path.removeprefix(_HUB).partition(":")
        return DatasetRows(datasets.load_dataset(name, configuration or None, split=split or "train"), path=path)
    loaded = datasets.load_from_disk(path)
    if isinstance(loaded, datasets.DatasetDict):
        names = list(loaded)
        chosen = split or (names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise ValueError(f"{path!r} has the splits {', '.join(names)}; split is {chosen}, expected one of them")
        loaded = loaded[chosen]
    elif split is not None:
        raise ValueError(f"{path!r} has no splits; split is {split}, expected none")
    return DatasetRows(loaded, path=path)


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(
            f"this input needs {package}, which cannot be imported ({error}); install the extra: "
            "pip install -e '.[data]'"
        ) from error

"""What make-shards reads: all that training reads, and besides it tables and Hugging Face data sets."""

import glob
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import braceexpand

from tokenflow.data.config import SourceConfig
from tokenflow.data.folders import FOLDER_EXTENSIONS
from tokenflow.data.samples import RawSample, Source
from tokenflow.data.sources import open_source
from tokenflow.data.table_rows import TABLE_EXTENSIONS, CsvRows, ParquetRows, is_dataset, open_dataset
from tokenflow.data.tables import TableConfig, TableSource


def open_input(path: str, tables: TableConfig | None = None) -> Source:
    """The samples of a path.

    Args:
        path: A folder of pictures, of .tar shards, or of tables; shards; a .csv, .tsv or .parquet; a pattern of either;
            what `save_to_disk` of a Hugging Face data set wrote; `hf:NAME` of one.
        tables: Columns and the like, for tables and data sets only.

    Raises:
        ValueError: There is nothing, a column is not there, or `tables` is given for something else.
    """
    config = tables or TableConfig()
    if is_dataset(path):
        return TableSource(open_dataset(path, split=config.split), config)
    if config.split is not None:
        raise ValueError(f"split is {config.split!r}, and {path!r} is no Hugging Face data set; leave it out")
    if found := _tables(path):
        return Concatenated([TableSource(_open_rows(name), config) for name in found])
    if config != TableConfig():
        raise ValueError(f"columns or a folder of images are given, and {path!r} is no table: leave them out")
    return open_source(SourceConfig(path=path))


class Concatenated:
    """Several sources as one."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources
        self.shard_sizes = [size for source in sources for size in source.shard_sizes]
        self._ends = list(accumulate(sum(source.shard_sizes) for source in sources))

    def describe(self, index: int) -> tuple[str, str]:
        """(key, where) of a sample."""
        number, inside = self._locate(index)
        return self.sources[number].describe(inside)

    def read(self, index: int) -> RawSample:
        """Sample number `index` of all; raises BadSample when it cannot be read."""
        number, inside = self._locate(index)
        return self.sources[number].read(inside)

    def _locate(self, index: int) -> tuple[int, int]:
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)


def _tables(path: str) -> list[str]:
    """The tables of a path, if that is what it holds."""
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        if any(name.endswith(".tar") for name in names) or _has_pictures(path):
            # what lies beside shards or pictures says what img2dataset did, sample by sample, as their .json does
            return []
        return [os.path.join(path, name) for name in names if name.endswith(TABLE_EXTENSIONS)]
    if not path.endswith(TABLE_EXTENSIONS):
        return []
    found: list[str] = []
    for name in braceexpand.braceexpand(path):
        matches = [name] if os.path.exists(name) or not glob.has_magic(name) else sorted(glob.glob(name))
        if not matches or not os.path.isfile(matches[0]):
            raise ValueError(f"{name!r} does not exist; expected a .csv, .tsv or .parquet, or a pattern of them")
        found += matches
    return found


def _has_pictures(folder: str) -> bool:
    return any(
        name.rpartition(".")[2].lower() in FOLDER_EXTENSIONS for _, _, names in os.walk(folder) for name in names
    )


def _open_rows(path: str) -> CsvRows | ParquetRows:
    return ParquetRows(path) if path.endswith(".parquet") else CsvRows(path)

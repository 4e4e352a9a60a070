"""The benchmark of shard writing compares the same files, and a row holds what the docstring promises."""

import argparse
import tarfile

from benchmarks.shard_writing import InMemory, make_shards, measure, tar, write_files
from tokenflow.data.folders import FolderSource


def contents(path):
    """Every file in a tar by its name."""
    with tarfile.open(path) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name.removeprefix("./"): archive.extractfile(member).read() for member in files}


def test_both_write_the_same_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_files(folder, count=5, stored_size=64)
    tar(folder, tmp_path / "all.tar")
    make_shards(folder, tmp_path / "shards", shard_bytes=1 << 20, workers=0)
    pictures = [contents(path) for path in (tmp_path / "all.tar", tmp_path / "shards" / "shard-000000.tar")]
    assert pictures[0].keys() == pictures[1].keys() and len(pictures[0]) == 15
    assert all(pictures[0][name] == pictures[1][name] for name in pictures[0] if name.endswith(".jpg"))
    source = FolderSource(folder)
    assert InMemory(source).read(3) == source.read(3)


def test_a_row_has_the_shares(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_files(folder, count=8, stored_size=64)
    arguments = argparse.Namespace(repeats=1, shard_size=1, photographs=8)
    row = measure(folder, tmp_path, workers=1, arguments=arguments)
    assert row["pictures"] == 8 and row["workers"] == 1 and row["verify_s"] > 0
    assert min(row["share"], row["median_share"], row["cpu_share"]) > 0

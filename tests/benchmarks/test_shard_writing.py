"""The benchmark of shard writing compares the same files, and a row holds what the docstring promises."""

import json
import subprocess
import sys
import tarfile

from benchmarks.shard_writing import InMemory, make_shards, tar, write_files
from tokenflow.data.folders import FolderSource


def test_both_write_the_same_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_files(folder, count=5, stored_size=64)
    tar(folder, tmp_path / "all.tar")
    make_shards(folder, tmp_path / "shards", shard_bytes=1 << 20, workers=0)
    with tarfile.open(tmp_path / "all.tar") as ours, tarfile.open(tmp_path / "shards" / "shard-000000.tar") as theirs:
        pictures = [
            {
                member.name.removeprefix("./"): archive.extractfile(member).read()
                for member in archive
                if member.isfile()
            }
            for archive in (ours, theirs)
        ]
    assert pictures[0].keys() == pictures[1].keys() and len(pictures[0]) == 15
    assert all(pictures[0][name] == pictures[1][name] for name in pictures[0] if name.endswith(".jpg"))
    source = FolderSource(folder)
    assert InMemory(source).read(3) == source.read(3)


def test_a_row_has_the_shares():
    options = ["--json", "--pictures", "8", "--stored_size", "64", "--repeats", "1", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.shard_writing", *options], capture_output=True, text=True, check=True
    )
    row = json.loads(done.stdout)
    assert row["pictures"] == 8 and row["workers"] == 0
    assert abs(row["share"] - (row["tar_s"] + row["verify_s"]) / row["make_shards_s"]) < 0.1
    assert row["cpu_share"] > 0 and row["median_share"] > 0

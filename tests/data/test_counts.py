import io
import json
import logging
import os
import tarfile
from pathlib import Path

import pytest

from tokenflow.data import counts
from tokenflow.data.counts import COUNTS_NAME, count_samples
from tokenflow.data.shards import ShardSource, expand_shards


def write_tar(path, samples):
    with tarfile.open(path, "w") as archive:
        for number in range(samples):
            info = tarfile.TarInfo(f"{number:04d}.png")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"png"))


@pytest.fixture
def folder(tmp_path):
    for shard in range(20):
        write_tar(tmp_path / f"{shard:03d}.tar", shard + 1)
    return tmp_path


SIZES = [shard + 1 for shard in range(20)]


def refuse(path):
    raise AssertionError(f"{path} was counted")


def test_a_later_start_reads_neither_shards_nor_their_indices(folder):
    paths = expand_shards(str(folder))
    assert list(ShardSource(paths).shard_sizes) == SIZES
    assert count_samples(paths, count=refuse) == SIZES
    for index in folder.glob("*.index.json"):
        index.unlink()
    assert list(ShardSource(paths).shard_sizes) == SIZES and not list(folder.glob("*.index.json"))


def test_a_changed_or_new_shard_is_counted_again_and_no_other(folder):
    paths = expand_shards(str(folder))
    ShardSource(paths)
    write_tar(folder / "003.tar", 9)
    # the same bytes at another time may be other samples
    os.utime(folder / "005.tar", ns=(1, 1))
    write_tar(folder / "020.tar", 2)
    counted = []

    def count(path):
        counted.append(os.path.basename(path))
        return 7

    paths = expand_shards(str(folder))
    assert count_samples(paths, count=count) == [*SIZES[:3], 7, 5, 7, *SIZES[6:], 7]
    assert sorted(counted) == ["003.tar", "005.tar", "020.tar"]
    assert count_samples(paths, count=refuse)[3] == 7


def test_counts_of_other_shards_in_the_folder_are_kept(folder):
    paths = expand_shards(str(folder))
    ShardSource(paths[:5])
    ShardSource(paths[5:])
    assert count_samples(paths, count=refuse) == SIZES


def test_shards_of_several_folders_and_repeated_ones_keep_their_order(tmp_path):
    paths = []
    for number in (2, 5, 3):
        (tmp_path / str(number)).mkdir()
        write_tar(tmp_path / str(number) / "x.tar", number)
        paths.append(str(tmp_path / str(number) / "x.tar"))
    assert list(ShardSource([*paths, paths[0]]).shard_sizes) == [2, 5, 3, 2]


@pytest.mark.parametrize("content", ["{broken", "[]", json.dumps({"version": 0}), json.dumps({"version": 1})])
def test_counts_that_cannot_be_used_are_made_again(folder, content):
    (folder / COUNTS_NAME).write_text(content)
    paths = expand_shards(str(folder))
    assert list(ShardSource(paths).shard_sizes) == SIZES
    assert count_samples(paths, count=refuse) == SIZES


def test_where_nothing_can_be_written_counts_stay_in_memory(folder, monkeypatch):
    def read_only(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    assert list(ShardSource(expand_shards(str(folder))).shard_sizes) == SIZES
    assert all(path.suffix == ".tar" for path in folder.iterdir())


def test_only_the_first_shards_that_are_needed_are_opened(folder):
    source = ShardSource(expand_shards(str(folder)), at_least=30)
    assert sum(source.shard_sizes) >= 30 and len(source.paths) == len(source.shard_sizes) == 8
    assert len(list(folder.glob("*.index.json"))) == 8
    assert sum(ShardSource(expand_shards(str(folder)), at_least=10**6).shard_sizes) == sum(SIZES)


def test_long_counting_tells_how_far_it_is(folder, monkeypatch, caplog):
    monkeypatch.setattr(counts, "_LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        ShardSource(expand_shards(str(folder)))
    assert "indexed 12 of 20 shards" in caplog.messages


def test_an_error_while_counting_is_raised(folder):
    with pytest.raises(AssertionError, match="was counted"):
        count_samples(expand_shards(str(folder)), count=refuse)

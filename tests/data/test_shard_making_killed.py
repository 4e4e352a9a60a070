"""Shards that were made by processes killed at random moments equal those of an unbroken run."""

import multiprocessing
import random
import signal
import time

import pytest

from tests.data.test_shard_making import folder, make, tree
from tokenflow.data.folders import FolderSource
from tokenflow.data.shard_making import MakeShardsConfig, ShardMaking


def run_slowly(making, workers):
    making.run(workers=workers, progress=lambda position: time.sleep(0.002))


def killed_and_continued(tmp_path, *, kills, seed):
    """(files of an unbroken run, files of one that was killed so often)."""
    folder(tmp_path / "in", count=60)
    config = MakeShardsConfig(shard_bytes=12_000, duplicates="near", shuffle_seed=seed)
    make(tmp_path / "in", tmp_path / "whole", config)
    rng = random.Random(seed)
    killed, moments, patience = 0, [], 1.0
    out = tmp_path / "out"
    while killed < kills:
        making = ShardMaking(FolderSource(tmp_path / "in"), out, path=str(tmp_path / "in"), config=config)
        process = multiprocessing.get_context("fork").Process(target=run_slowly, args=(making, rng.choice([0, 2])))
        process.start()
        process.join(patience * rng.uniform(0.02, 0.3))
        process.kill()
        process.join()
        if process.exitcode == 0:
            # it finished before its moment came: begin another
            assert tree(out) == tree(tmp_path / "whole")
            for path in out.iterdir():
                path.unlink()
            continue
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        moments.append(making.done()[1])
        # on a busy machine a kill has to wait for longer until it meets a shard
        patience *= 1.0 if moments[-1] else 1.5
        for path in out.glob("shard-*.tar"):
            # whole under its final name, always
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert any(moments), "no kill came late enough to leave a shard"
    make(tmp_path / "in", out, config)
    return tree(tmp_path / "whole"), tree(out)


def test_killed_ten_times_the_result_is_that_of_an_unbroken_run(tmp_path):
    whole, continued = killed_and_continued(tmp_path, kills=10, seed=0)
    assert continued == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_thirty_times_the_result_is_that_of_an_unbroken_run(tmp_path, seed):
    whole, continued = killed_and_continued(tmp_path, kills=30, seed=seed)
    assert continued == whole

"""The loader beside other things of a process: signals to its group, its end, and torch's global random numbers."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from tokenflow.data import DataConfig, Loader, SourceConfig, write_shapes

SIZES = {"global_batch_size": 4, "micro_batch_size": 4, "seed": 0}
PROGRAM = """
import signal, sys
caught = []
if {catch}:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: caught.append(number))
from tokenflow.data import DataConfig, Loader, SourceConfig
settings = DataConfig(sources=(SourceConfig(path={path!r}),), image_size=32, num_workers=2, prefetch_batches=2)
loader = Loader(settings, global_batch_size=4, micro_batch_size=4, seed=0)
next(loader), next(loader)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    next(loader)
print("read on", len(set(caught)), flush=True)
{end}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes")
    write_shapes(path, num_samples=32, image_size=32, seed=0, samples_per_shard=16)
    return str(path)


def settings(folder, workers):
    return DataConfig(sources=(SourceConfig(path=folder),), image_size=32, num_workers=workers)


def start(folder, *, catch=True, end=""):
    program = PROGRAM.format(path=folder, catch=catch, end=end)
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore:This DataLoader will create", "-c", program],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    if process.stdout.readline() != "ready\n":
        pytest.fail(process.communicate(timeout=60)[1])
    return process


@pytest.mark.parametrize("end", ["loader.close()", "", "raise KeyError('a bug')"])
def test_stop_signals_to_the_group_leave_the_workers_reading_and_the_end_clean(folder, end):
    process = start(folder, end=end)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
    # a hang at the end would run into the timeout
    output, errors = process.communicate("go\n", timeout=60)
    assert output == "read on 3\n", errors
    assert process.returncode == (1 if "raise" in end else 0) and "worker" not in errors.lower(), errors


def test_workers_end_when_their_parent_is_killed(folder):
    process = start(folder, catch=False)
    process.kill()
    # the workers hold the other end of the pipe: it closes when the last of them is gone
    process.communicate(timeout=60)


def test_close_ends_the_workers_and_the_loader(folder):
    loader = Loader(settings(folder, 2), **SIZES)
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert not multiprocessing.active_children()
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_torchs_random_state_alone(folder, workers):
    before = torch.get_rng_state()
    loader = Loader(settings(folder, workers), **SIZES)
    next(loader)
    loader.close()
    assert torch.equal(torch.get_rng_state(), before)

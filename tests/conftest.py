"""Shared test settings: threads are pinned so that two-process tests fit two cores, and nothing phones home."""

import os
import signal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait starve the two processes of a test.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Set by pytest-xdist: two of them share two cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# The same examples in every run, however slow: what fails on one machine fails on all.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_collection_modifyitems(config, items):
    """With `-n`, the tests of a file stay together, for its fixtures' sake; all of Slurm's share one cluster."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            slurm = item.path.parent.name == "slurm"
            item.add_marker(pytest.mark.xdist_group("slurm" if slurm else str(item.path.relative_to(config.rootpath))))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _signals():
    """A test that leaves a signal ignored or caught fails itself, not whichever comes after it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before, "this test changed what signals do, and did not put it back"

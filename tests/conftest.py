"""Shared test settings: threads are pinned so that two-process tests fit two cores, and nothing phones home."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait starve the two processes of a test.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import pytest
import torch
from hypothesis import settings

# The same examples in every run: what fails on one machine fails on all.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)

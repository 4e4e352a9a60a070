"""The cluster of these tests, and unbroken runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.world import barely_trained, world
from tests.slurm.cluster import Cluster, what_is_missing
from tests.slurm.runs import generate

__all__ = ["barely_trained", "world"]


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Four nodes on this host."""
    obstacle = what_is_missing()
    if obstacle:
        pytest.skip(obstacle)
    with Cluster(tmp_path_factory.mktemp("cluster"), nodes=4) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster) -> Iterator[Cluster]:
    """The cluster, empty before and after."""
    yield running_cluster
    running_cluster.clear()


@pytest.fixture(scope="session")
def two_nodes(running_cluster, world, barely_trained, tmp_path_factory) -> Path:
    """The folder of an unbroken run on two nodes."""
    output = tmp_path_factory.mktemp("unbroken") / "run"
    generate(running_cluster, world, barely_trained, output, nodes=2).end()
    return output

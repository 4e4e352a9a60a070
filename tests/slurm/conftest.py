"""The cluster of these tests, and unbroken runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.world import barely_trained, world
from tests.slurm.cluster import Cluster, what_is_missing
from tests.slurm.runs import conversation_options, generate
from tests.train.launching import run
from tokenflow.data.world_conversations import write_conversations

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


@pytest.fixture(scope="session")
def talk(tmp_path_factory) -> Path:
    """Conversations about the world's training pictures."""
    folder = tmp_path_factory.mktemp("talk")
    write_conversations(folder, num_scenes=96, seed=0, turns=3)
    return folder


@pytest.fixture(scope="session")
def language(talk, tmp_path_factory) -> Path:
    """The folder of a nano language model after a step."""
    output = tmp_path_factory.mktemp("language") / "run"
    sizes = ("--language", '{"width": 64, "depth": 2, "heads": 4, "kv_heads": 4, "head_width": 16, "mlp_width": 96}')
    given = ("--recipe", "nano", "--data", talk / "text.jsonl", "--output", output, *sizes)
    run(*given, *conversation_options(steps=1), module="pipelines.lm_pretrain")
    return output / "model"

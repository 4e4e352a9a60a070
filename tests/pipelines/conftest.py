"""Fixtures of the pipeline tests."""

from tests.pipelines.world import barely_trained, world

__all__ = ["barely_trained", "world"]

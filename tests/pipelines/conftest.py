"""Fixtures of the pipeline tests."""

from tests.pipelines.world import world

__all__ = ["world"]

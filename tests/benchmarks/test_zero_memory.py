"""The memory that a plan promises is what processes grow by."""

import sys

import pytest

from benchmarks.zero_memory import measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("world_size", "stage"), [(2, 2), (4, 3)])
def test_resident_memory_grows_by_the_estimate(world_size, stage):
    found = measure(stage=stage, world_size=world_size)
    assert found["parameters"] >= 200_000_000
    assert found["measured"] == pytest.approx(found["estimated"], rel=0.15), found

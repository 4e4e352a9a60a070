from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflow.data.mixture import Mixture

quick = settings(max_examples=40)
weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@quick
@given(weights, st.integers(0, 10**6))
def test_counts_are_within_a_sample_of_the_weights_at_block_borders(values, block):
    mixture = Mixture(values, seed=0)
    position = block * mixture.block_size
    counts = mixture.counts(position)
    assert sum(counts) == position
    assert max(abs(n - s * position) for n, s in zip(counts, mixture.shares, strict=True)) <= 1 + 1e-9 * position


@quick
@given(weights, st.integers(0, 5))
def test_every_source_is_read_in_order_without_gaps(values, seed):
    mixture = Mixture(values, seed=seed)
    seen = [0] * len(values)
    for position in range(2 * mixture.block_size + 7):
        if position % 31 == 0:
            assert mixture.counts(position) == tuple(seen)
        source, place = mixture[position]
        assert place == seen[source]
        seen[source] += 1


@quick
@given(weights, st.integers(0, 10**9))
def test_seeking_agrees_with_the_counts_anywhere(values, position):
    mixture = Mixture(values, seed=3)
    source, place = mixture[position]
    before, after = mixture.counts(position), mixture.counts(position + 1)
    assert place == before[source]
    assert [b - a for a, b in zip(before, after, strict=True)] == [int(k == source) for k in range(len(values))]


def test_shares_hold_in_every_stretch():
    mixture = Mixture([3, 1], seed=0)
    sources = [mixture[position][0] for position in range(6400)]
    for stretch in np.split(np.asarray(sources), 100):
        assert stretch.mean() == pytest.approx(0.25, abs=1 / 64)
    # shuffled inside a block, not periodic
    assert len({tuple(sources[start : start + 64]) for start in range(0, 6400, 64)}) > 90


def test_weights_normalise():
    assert [Mixture([2, 6], seed=1)[k] for k in range(500)] == [Mixture([0.25, 0.75], seed=1)[k] for k in range(500)]


def test_one_source_is_read_straight_through():
    assert [Mixture([5], seed=0)[k] for k in range(300)] == [(0, k) for k in range(300)]


def test_rare_sources_get_their_share():
    mixture = Mixture([1, 0.001], seed=0)
    assert mixture.counts(1_001_000) == pytest.approx((1_000_000, 1000), abs=mixture.block_size * 0.001 + 1)
    positions = range(20 * mixture.block_size)
    ones = [p for p in positions if mixture[p][0] == 1]
    assert all(b > a for a, b in pairwise(ones)) and len(ones) == mixture.counts(positions.stop)[1]


@pytest.mark.parametrize("values", [[], [0.0, 1.0], [-1.0], [float("nan")], [float("inf"), 1.0]])
def test_weights_that_are_no_shares_are_refused(values):
    with pytest.raises(ValueError, match="must be positive"):
        Mixture(values, seed=0)


def test_a_vanishing_share_is_refused():
    with pytest.raises(ValueError, match="expected at least"):
        Mixture([1.0, 1e-9], seed=0)

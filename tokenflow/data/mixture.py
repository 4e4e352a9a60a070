"""Which source the sample at a global position comes from, and how many of each source came before it.

Positions are cut into blocks. The number of samples of a source before a block is its weight times the position,
rounded so that the counts always add up: every source is within one sample of its exact share at every block border,
and the counts are a formula, so that seeking costs nothing. Inside a block the sources are shuffled.
"""

from collections.abc import Sequence
from math import ceil, isfinite

import numpy as np

from tokenflow.data.hashing import permutation
from tokenflow.data.memo import Memo

_BITS = 40
SMALLEST_SHARE = 1e-6
"""Of a source; less would make the blocks very long."""


class Mixture:
    """Deterministic mixture of sources; weights are normalised and must be positive.

    Raises ValueError for weights that are not positive numbers, or a share below one in a million.
    """

    def __init__(self, weights: Sequence[float], *, seed: int):
        if not weights or not all(isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"source weights {tuple(weights)} must be positive numbers; leave out a source to skip it")
        shares = np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
        if shares.min() < SMALLEST_SHARE:
            raise ValueError(
                f"a source's share of the mixture is {shares.min():.2g}; expected at least {SMALLEST_SHARE}. "
                "Raise its weight or leave it out."
            )
        self.shares = tuple(shares.tolist())
        # upper borders of the sources on a scale of 2**40, so that counts are exact integers at any position
        self._borders = [round(border * (1 << _BITS)) for border in np.cumsum(shares)]
        self._borders[-1] = 1 << _BITS
        # with two or more samples of every source in a block, rounding can never give a negative count
        self.block_size = 1 << max(6, (ceil(2 / shares.min()) - 1).bit_length())
        self._seed = seed
        self._blocks = Memo(4)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source, position within that source) of a global position."""
        block, offset = divmod(position, self.block_size)
        sources, ranks = self._block(block)
        return int(sources[offset]), int(ranks[offset])

    def counts(self, position: int) -> tuple[int, ...]:
        """How many samples of every source lie before a global position; they add up to it."""
        block, offset = divmod(position, self.block_size)
        counts = self._counts_at_block(block)
        if offset:
            sources, _ = self._block(block)
            inside = np.bincount(sources[:offset], minlength=len(counts))
            counts = [count + int(extra) for count, extra in zip(counts, inside, strict=True)]
        return tuple(counts)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        return self._blocks.get(block, lambda: self._make_block(block))

    def _counts_at_block(self, block: int) -> list[int]:
        position = block * self.block_size
        rounded = [(position * border + (1 << _BITS - 1)) >> _BITS for border in self._borders]
        return [upper - lower for upper, lower in zip(rounded, [0, *rounded[:-1]], strict=True)]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Per position of a block: its source, and its position within that source."""
        before, after = self._counts_at_block(block), self._counts_at_block(block + 1)
        quotas = [b - a for a, b in zip(before, after, strict=True)]
        order = permutation(self.block_size, self._seed, -1, block)
        sources = np.repeat(np.arange(len(quotas)), quotas)[order]
        ranks = np.empty(self.block_size, dtype=np.int64)
        for source, start in enumerate(before):
            here = sources == source
            ranks[here] = start + np.arange(quotas[source])
        return sources, ranks

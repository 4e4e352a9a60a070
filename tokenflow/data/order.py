"""The order in which a source's samples are seen: a pure function of (seed, source, epoch, position).

Shards are shuffled, then samples within windows of a few neighbouring (already shuffled) shards, so that reads stay
local to those shards. Ranks and workers do not appear: they only choose which positions to read.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from tokenflow.data.hashing import permutation
from tokenflow.data.memo import Memo


class SourceOrder:
    """Endless order over a source of shards with `shard_sizes` samples; position p lies in epoch p // size."""

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, source: int = 0, window_shards: int = 8):
        if window_shards < 1:
            raise ValueError(f"window_shards {window_shards}; expected at least 1")
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.size = int(self.sizes.sum())
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._key = (seed, source)
        self._window_shards = window_shards
        self._epochs = Memo(2)
        self._windows = Memo(4)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, sample index) at a position of the endless stream; touches one window of one epoch."""
        epoch, offset = divmod(position, self.size)
        _, ends = self._epoch(epoch)
        window = bisect_right(ends, offset)
        start = ends[window - 1] if window else 0
        indices = self._windows.get((epoch, window), lambda: self._make_window(epoch, window))
        return epoch, int(indices[offset - start])

    def stand_in(self, position: int, draw: int) -> int:
        """A sample that replaces the one at a position, chosen by a large random number."""
        return draw % self.size

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        return self._epochs.get(epoch, lambda: self._make_epoch(epoch))

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """(order of shards, position after every window) of one epoch."""
        shards = permutation(len(self.sizes), *self._key, epoch)
        ends = np.cumsum(self.sizes[shards])
        last = np.arange(self._window_shards - 1, len(shards) - 1, self._window_shards)
        return shards, [*ends[last].tolist(), self.size]

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        """Sample indices of one window, shuffled."""
        shards, _ = self._epoch(epoch)
        chosen = shards[window * self._window_shards : (window + 1) * self._window_shards]
        indices = np.concatenate([np.arange(self.sizes[s]) + self._starts[s] for s in chosen])
        return indices[permutation(len(indices), *self._key, epoch, window + 1)]

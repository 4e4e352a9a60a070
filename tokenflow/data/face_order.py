"""The order of a source whose samples with faces are upsampled at read time.

Samples with and without faces are two streams, each in an endless `SourceOrder` of its own; a `Mixture` of two shares
says whose turn it is. So the share of faces is exact at the borders of its blocks, any factor will do, and the sample
at a position is a function of (seed, source, position) as without a factor. An epoch is still as many reads as the
source has samples; within one, a sample with faces comes `factor` times on average.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from tokenflow.data.hashing import mix
from tokenflow.data.memo import Memo
from tokenflow.data.mixture import SMALLEST_SHARE, Mixture
from tokenflow.data.order import SourceOrder

_STREAM = -11
"""Keeps these draws apart from those of orders, mixture and grouping, which use the same seed."""
_KEPT_SHARDS = 64


class FaceOrder:
    """As `SourceOrder`: `order[position]` is (epoch, sample index). Each of the two streams counts its own epochs."""

    def __init__(
        self, having: Sequence[np.ndarray], *, factor: float, seed: int, source: int = 0, window_shards: int = 8
    ):
        """Prepare the order.

        Args:
            having: Whether each sample has a face, bool [samples] a shard.
            factor: By which the share of samples with faces is multiplied.
            seed: Of the run.
            source: Number of the source.
            window_shards: Shards that are shuffled together.

        Raises:
            ValueError: No sample has a face, or the factor asks for more than all samples.
        """
        self.size = sum(map(len, having))
        faces = sum(int(np.count_nonzero(part)) for part in having)
        share = factor * faces / max(1, self.size)
        if faces in (0, self.size) or not SMALLEST_SHARE <= share <= 1 - SMALLEST_SHARE:
            expected = "1, for there is nothing to choose from"
            if 0 < faces < self.size:
                expected = f"less than {self.size / faces:.4g}, so that others remain"
            raise ValueError(
                f"face_factor is {factor:g}, and {faces} of {self.size} samples have a face: expected {expected}"
            )
        own = mix(seed, source, _STREAM)
        self.share = share
        self.turns = Mixture([1 - share, share], seed=own)
        """Of the stream without faces, and that with."""
        self._streams = [
            _Stream([part == wanted for part in having], seed=own, number=number, window_shards=window_shards)
            for number, wanted in enumerate((False, True))
        ]
        packed = b"".join(np.packbits(part).tobytes() for part in having)
        self.digest = hashlib.sha256(packed).hexdigest()[:8]
        """Of who has a face: another index is another order."""

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch of the stream, sample index) at a position of the endless order."""
        stream, place = self.turns[position]
        epoch, offset = self._streams[stream].order[place]
        return epoch, self._streams[stream].index(offset)

    def stand_in(self, position: int, draw: int) -> int:
        """A sample that replaces the one at a position: of the same stream, chosen by a large random number."""
        stream = self._streams[self.turns[position][0]]
        return stream.index(draw % stream.order.size)


class _Stream:
    """Some samples of every shard, in an order of their own."""

    def __init__(self, chosen: Sequence[np.ndarray], *, seed: int, number: int, window_shards: int):
        sizes = [int(np.count_nonzero(part)) for part in chosen]
        self.order = SourceOrder(sizes, seed=seed, source=number, window_shards=window_shards)
        self._ends = list(accumulate(sizes))
        self._starts = list(accumulate([0, *map(len, chosen)]))
        # a bit a sample: a source may have a billion of them, and every worker holds this
        self._packed = [(np.packbits(part), len(part)) for part in chosen]
        self._members = Memo(_KEPT_SHARDS)

    def index(self, offset: int) -> int:
        """Index in the source of sample number `offset` of the stream."""
        shard = bisect_right(self._ends, offset)
        before = self._ends[shard - 1] if shard else 0
        members = self._members.get(shard, lambda: self._unpack(shard))
        return self._starts[shard] + int(members[offset - before])

    def _unpack(self, shard: int) -> np.ndarray:
        packed, size = self._packed[shard]
        return np.flatnonzero(np.unpackbits(packed, count=size))

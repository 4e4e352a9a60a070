"""Batches of like samples: a rearrangement of the global order that knows nothing of ranks or workers.

LLaVA groups by modality and length so that little is lost to padding. Here a window of whole global batches is sorted
(those without pictures first, then by length), cut into batches again, and the batches are shuffled. Windows end where
epochs do, and one batch of a window at most mixes both modalities.
"""

from collections.abc import Callable

import numpy as np

from tokenflow.data.hashing import permutation
from tokenflow.data.memo import Memo

_STREAM = -7
"""Keeps these draws apart from those of the orders and the mixture, which use the same seed."""
Keys = Callable[[int], tuple[int, int]]
"""Position in the order before: its group, and its length."""


class GroupedOrder:
    """Which position of an order each position of the grouped order takes: `GroupedOrder(...)[position]`.

    It depends on the size of the global batch, and so a run resumes exactly with that size alone.
    """

    def __init__(self, keys: Keys, *, global_batch_size: int, total_samples: int, batches: int, seed: int):
        self._keys = keys
        self._batch = global_batch_size
        self._steps = max(1, total_samples // global_batch_size)
        self._batches = batches
        self._seed = seed
        self._windows = Memo(2)

    def __getitem__(self, position: int) -> int:
        """The position to read in the order that is grouped."""
        step, offset = divmod(position, self._batch)
        epoch, step = divmod(step, self._steps)
        window, place = divmod(step, self._batches)
        found = self._windows.get((epoch, window), lambda: self._window(epoch, window))
        return int(found[place, offset])

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """Positions [batches of the window, global batch]."""
        first = window * self._batches
        count = min(self._batches, self._steps - first)
        start = (epoch * self._steps + first) * self._batch
        positions = np.arange(start, start + count * self._batch)
        keys = np.array([self._keys(position) for position in positions.tolist()])
        # stable: what is alike stays in the random order it had
        sorted_positions = positions[np.lexsort((keys[:, 1], keys[:, 0]))].reshape(count, self._batch)
        return sorted_positions[permutation(count, self._seed, _STREAM, epoch, window)]

"""Samples become a batch: half of it in the workers, half in the training process, and the memory that they share.

PyTorch makes new shared memory for every tensor that a worker sends. The pages of a batch of pictures take longer to
map, in the worker and again in the training process, than the pictures to copy. Pages that are used again are mapped
once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenflow.data.sources import Sample
from tokenflow.data.transforms import to_unit_range


class SharedBatches:
    """Room for `count` batches of uint8 pictures; the workers get it with what they are started with.

    Batch number n lies where n - `count` lay, which must have been used up when n is begun.
    """

    def __init__(self, shape: tuple[int, ...], *, count: int):
        self._rooms = torch.empty((count, *shape), dtype=torch.uint8).share_memory_()

    def __getitem__(self, number: int) -> torch.Tensor:
        """Where batch `number` lies, uint8 of the given shape: the memory itself, no copy."""
        return self._rooms[number % len(self._rooms)]


@dataclass(frozen=True)
class Stack:
    """Stacks a micro-batch where the training process will look for it: in shared memory, if there is some."""

    shared: SharedBatches | None

    def __call__(self, samples: list[Sample], number: int) -> tuple[torch.Tensor | int, dict[str, Any]]:
        """What `stack` gives, with the batch's number in place of pictures that are in shared memory."""
        if self.shared is None:
            return stack(samples)
        _, batch = stack(samples, into=self.shared[number])
        return number, batch

    def find(self, stored: torch.Tensor | int) -> torch.Tensor:
        """The pictures or codes of what a worker sent."""
        if not isinstance(stored, int):
            return stored
        assert self.shared is not None
        return self.shared[stored]


def stack(samples: list[Sample], *, into: torch.Tensor | None = None) -> tuple[torch.Tensor, dict[str, Any]]:
    """(pixels uint8 [b, 3, S, S] or codes int64 [b, L], the rest of a batch) of samples.

    `into` is memory for the first of the two, if there is some.
    """
    arrays = [sample.codes if sample.pixels is None else sample.pixels.transpose(2, 0, 1) for sample in samples]
    stored = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype) if into is None else into.numpy()
    for place, array in zip(stored, arrays, strict=True):
        np.copyto(place, array, casting="no")
    batch: dict[str, Any] = {
        "captions": [sample.caption for sample in samples],
        "keys": [sample.key for sample in samples],
        # a list: a tensor would get shared memory of its own
        "sample_seed": [sample.seed for sample in samples],
    }
    if any(sample.record is not None for sample in samples):
        batch["records"] = [sample.record for sample in samples]
    return torch.from_numpy(stored), batch


def present(stored: torch.Tensor, batch: dict[str, Any], *, pinned: bool = False) -> dict[str, Any]:
    """The batch that `stack` stacked with its tensors: `images` in [-1, 1] or `codes`, page-locked if asked; seeds."""
    if stored.dtype == torch.int64:
        content = {"codes": stored.pin_memory() if pinned else stored}
    else:
        content = {"images": to_unit_range(stored, pinned=pinned)}
    return {**batch, **content, "sample_seed": torch.tensor(batch["sample_seed"])}

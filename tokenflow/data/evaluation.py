"""Evaluation batches: the first samples in their natural order, each on exactly one rank."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tokenflow.data.config import DataConfig
from tokenflow.data.loader import stack
from tokenflow.data.sources import Sample, SampleReader, SkippedSample
from tokenflow.data.transforms import to_tensor


class EvaluationBatches:
    """The first `count` samples of the sources, in order, centre-cropped, not flipped, split over ranks; iterable anew.

    Batch b of rank r holds samples [(b R + r) n, + n) with n = `batch_size` and R = `world_size`. Every rank yields
    equally many batches of equal size: `mask` bool [n] is False for padding (the picture is grey) and for unusable
    samples, which are listed in `skipped`. Else a batch is as the training loader's, with `index` the sample's number
    (-1: padding).

    Raises ValueError when there are fewer than `count` samples; count None takes all.
    """

    def __init__(
        self, config: DataConfig, *, count: int | None = None, batch_size: int, rank: int = 0, world_size: int = 1
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}; expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must lie in 0..{world_size - 1} (world_size {world_size})")
        self.reader = SampleReader(config, seed=0)
        total = sum(self.reader.sizes)
        if count is not None and not 1 <= count <= total:
            raise ValueError(f"count {count} samples asked for, the sources hold {total}; expected 1 to {total}")
        self.count = total if count is None else count
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.skipped: list[SkippedSample] = []

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = []
        for batch in range(len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield self._batch(range(start, start + self.batch_size))

    def _batch(self, indices: range) -> dict[str, Any]:
        samples: list[Sample] = []
        mask = []
        for index in indices:
            found = self.reader.read_in_order(index) if index < self.count else None
            if isinstance(found, SkippedSample):
                self.skipped.append(found)
            mask.append(isinstance(found, Sample))
            samples.append(found if isinstance(found, Sample) else self._padding())
        pixels, batch = stack(samples)
        batch["images"] = to_tensor(pixels)
        batch["mask"] = torch.tensor(mask)
        batch["index"] = torch.tensor([index if index < self.count else -1 for index in indices])
        return batch

    def _padding(self) -> Sample:
        size = self.reader.config.image_size
        return Sample(pixels=np.full((size, size, 3), 128, np.uint8), caption="", key="", seed=0, record=None)

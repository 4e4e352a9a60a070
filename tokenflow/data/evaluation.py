"""Evaluation batches: the first samples in their natural order, each on exactly one rank."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tokenflow.data.config import DataConfig
from tokenflow.data.loader import refuse_too_many, stack
from tokenflow.data.sources import Sample, SampleReader, SkippedSample
from tokenflow.data.transforms import to_tensor

logger = logging.getLogger(__name__)
_NAMED = 20
"""Unusable samples that are named one by one in the log."""


class EvaluationBatches:
    """The first `count` samples of the sources, in order, centre-cropped, not flipped, split over ranks; iterable anew.

    Batch b of rank r holds samples [(b R + r) n, + n) with n = `batch_size` and R = `world_size`. Every rank yields
    equally many batches of equal size: `mask` bool [n] is False for padding (the picture is grey) and for unusable
    samples, which are listed in `skipped` and told by `skipped_note`. Else a batch is as the training loader's, with
    `index` the sample's number (-1: padding). Shards behind the samples asked for are not opened.

    Raises ValueError when there are fewer than `count` samples; `at_most` takes what there is up to that number, and
    neither of the two takes all. Iterating raises TooManyBadSamples by the training loader's limits, as soon as this
    rank has met too many.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        count: int | None = None,
        at_most: int | None = None,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        if count is not None and at_most is not None:
            raise ValueError(f"count {count} and at_most {at_most} are both given; expected one of them or neither")
        needed = at_most if count is None else count
        if needed is not None and needed < 1:
            raise ValueError(f"{needed} samples asked for; expected at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}; expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must lie in 0..{world_size - 1} (world_size {world_size})")
        self.reader = SampleReader(config, seed=0, at_least=needed)
        total = sum(self.reader.sizes)
        if count is not None and count > total:
            raise ValueError(f"count {count} samples asked for, the sources hold {total}; expected 1 to {total}")
        self.count = total if needed is None else min(needed, total)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.skipped: list[SkippedSample] = []
        self.samples_read = 0

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.world_size))

    def skipped_note(self) -> str:
        """One line for a report: how many of this rank's samples could not be used, and the first; "" when none."""
        if not self.skipped:
            return ""
        first = self.skipped[0]
        return (
            f"{len(self.skipped)} of {self.samples_read} samples could not be used and were left out, "
            f"the first {first.key} in {first.where}: {first.reason}"
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = []
        self.samples_read = 0
        for batch in range(len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield self._batch(range(start, start + self.batch_size))

    def _batch(self, indices: range) -> dict[str, Any]:
        samples: list[Sample] = []
        mask = []
        for index in indices:
            found = self.reader.read_in_order(index) if index < self.count else None
            self.samples_read += found is not None
            if isinstance(found, SkippedSample):
                self.skipped.append(found)
                if len(self.skipped) <= _NAMED:
                    logger.warning("left out %s in %s: %s", found.key, found.where, found.reason)
                config = self.reader.config
                refuse_too_many(config, bad=len(self.skipped), read=self.samples_read, examples=self.skipped)
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

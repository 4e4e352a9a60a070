"""Evaluation batches: the first samples in their natural order, each on exactly one rank."""

import hashlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tokenflow.data.batches import present, stack
from tokenflow.data.config import DataConfig
from tokenflow.data.loader import refuse_too_many
from tokenflow.data.sources import Sample, SampleReader, SkippedSample

logger = logging.getLogger(__name__)
_NAMED = 20
"""Unusable samples that are named one by one in the log."""


class EvaluationBatches:
    """The first `count` samples of the sources, in order, centre-cropped, not flipped, split over ranks; iterable anew.

    Batch b of rank r holds samples [(b R + r) n, + n) with n = `batch_size` and R = `world_size`. Every rank yields
    equally many batches of equal size: `mask` bool [n] is False for padding (the picture is grey, the codes are 0) and
    for unusable samples, which are listed in `skipped` and told by `skipped_note`. Else a batch is as the training
    loader's, with `index` the sample's number (-1: padding). Shards behind the samples asked for are not opened.

    `num_workers` processes read and decode; 0 does it here. The batches are the same for any number. (The training
    configuration's own `num_workers` is not used: a short evaluation is over before processes are started.)

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
        num_workers: int = 0,
    ):
        if count is not None and at_most is not None:
            raise ValueError(f"count {count} and at_most {at_most} are both given; expected one of them or neither")
        needed = at_most if count is None else count
        if needed is not None and needed < 1:
            raise ValueError(f"{needed} samples asked for; expected at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}; expected at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers {num_workers}; expected at least 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must lie in 0..{world_size - 1} (world_size {world_size})")
        self.reader = SampleReader(config.without_upsampling(), seed=0, at_least=needed)
        total = sum(self.reader.sizes)
        if count is not None and count > total:
            raise ValueError(f"count {count} samples asked for, the sources hold {total}; expected 1 to {total}")
        self.count = total if needed is None else min(needed, total)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
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

    def stamp(self) -> str:
        """A hash of names, sizes and times of change of the files with these samples; the pictures are not read."""
        digest = hashlib.blake2b(digest_size=16)
        files = dict.fromkeys(
            source.describe(index)[1]
            for source, size in zip(self.reader.sources, self.reader.sizes, strict=True)
            for index in range(min(size, self.count))
        )
        for path in files:
            digest.update(f"{path}\0{_stamp(path)}\n".encode())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.starting_at(0)

    def starting_at(self, batch: int, *, skipped: Sequence[SkippedSample] = ()) -> Iterator[dict[str, Any]]:
        """This rank's batches from number `batch` on.

        Args:
            batch: 0 to `len(self)`; an evaluation that was stopped continues with the first it has not counted.
            skipped: The unusable samples of the batches before, so that limits and note count them too.
        """
        self.skipped = list(skipped)
        self.samples_read = sum(self._samples_in(number) for number in range(batch))
        numbers = range(batch, len(self))
        workers = min(self.num_workers, len(numbers))
        loaded = DataLoader(
            _Numbered(self),
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=self.reader.config.prefetch_batches if workers else None,
            worker_init_fn=_leave_interrupts_to_the_parent,
            # its own, so that the state of torch's global generator does not depend on there being an evaluation
            generator=torch.Generator().manual_seed(0),
        )
        for stored, content, found in loaded:
            for bad in found:
                self._note(bad)
            yield present(stored, content)

    def _note(self, bad: SkippedSample | None) -> None:
        self.samples_read += 1
        if bad is None:
            return
        self.skipped.append(bad)
        if len(self.skipped) <= _NAMED:
            logger.warning("left out %s in %s: %s", bad.key, bad.where, bad.reason)
        refuse_too_many(self.reader.config, bad=len(self.skipped), read=self.samples_read, examples=self.skipped)

    def _samples_in(self, batch: int) -> int:
        start = (batch * self.world_size + self.rank) * self.batch_size
        return max(0, min(self.count - start, self.batch_size))

    def read(self, batch: int) -> tuple[torch.Tensor, dict[str, Any], list[SkippedSample | None]]:
        """Batch number `batch`: (what `stack` gives, the rest of it, for every sample None or why it is left out)."""
        start = (batch * self.world_size + self.rank) * self.batch_size
        indices = range(start, start + self.batch_size)
        found = [self.reader.read_in_order(index) for index in indices[: self._samples_in(batch)]]
        padded = found + [None] * (self.batch_size - len(found))
        mask = [isinstance(sample, Sample) for sample in padded]
        stored, content = stack([sample if isinstance(sample, Sample) else self._padding() for sample in padded])
        content["mask"] = torch.tensor(mask)
        content["index"] = torch.tensor([index if index < self.count else -1 for index in indices])
        return stored, content, [sample if isinstance(sample, SkippedSample) else None for sample in found]

    def _padding(self) -> Sample:
        size = self.reader.config.image_size
        coded = self.reader.codes
        return Sample(
            pixels=np.full((size, size, 3), 128, np.uint8) if coded is None else None,
            caption="",
            key="",
            seed=0,
            record=None,
            codes=None if coded is None else np.zeros(coded.num_codes, np.int64),
        )


class _Numbered(Dataset):
    """Batches by number, for PyTorch's workers."""

    def __init__(self, batches: EvaluationBatches):
        self.batches = batches

    def __getitem__(self, number: int) -> tuple[torch.Tensor, dict[str, Any], list[SkippedSample | None]]:
        return self.batches.read(number)


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group: one traceback is enough, and the parent's end ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        # reading it will tell
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"

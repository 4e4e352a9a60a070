"""The training loader: micro-batches of a global order that knows nothing of ranks or workers.

With global batch G, micro-batch m, R ranks and A = G / (R m) accumulation steps, micro-batch a of rank r at step t is
slice [t G + (r A + a) m, + m) of the order. One process with accumulation R A sees the same micro-batches as R
processes with A, and the place to resume from is one number.
"""

import atexit
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from tokenflow.data.batches import SharedBatches, Stack, present
from tokenflow.data.config import Cursor, DataConfig
from tokenflow.data.mixture import Mixture
from tokenflow.data.sources import SampleReader, SkippedSample

logger = logging.getLogger(__name__)
_NAMED = 20
"""Unusable samples that are named one by one in the log; later ones at every doubling of their number."""


class TooManyBadSamples(ValueError):
    """More samples than `max_bad_fraction` cannot be used."""


class Loading(Protocol):
    """The part of a configuration that says how samples are read, whatever they are."""

    num_workers: int
    prefetch_batches: int
    max_bad_fraction: float
    min_bad_samples: int


class Reader(Protocol):
    """Samples of a run's global order; picklable, the same in every process."""

    names: list[str]
    sizes: list[int]
    mixture: Mixture

    def read(self, position: int) -> tuple[Any, list[SkippedSample]]:
        """The sample at a global position, and the unusable ones it stands in for."""


Collate = Callable[[list[Any], int], Any]
"""What a worker makes of the samples of a micro-batch and its number, counted from the first that the loader gives."""


class OrderedLoader:
    """Endless iterator over a rank's micro-batches of any reader's samples: `batch, cursor = next(loader)`.

    Resuming from `cursor` continues with the step after the one that this micro-batch belongs to if it is the
    step's last, and repeats the whole step otherwise.

    Attributes: `steps_per_epoch`, equal on every rank; `skipped`, the unusable samples this rank has met, each once;
    `samples_read` and `bad_reads`, this rank's samples and unusable ones so far.

    Raises ValueError for sizes that do not divide, sources without enough samples, or a cursor of other data.
    """

    def __init__(
        self,
        reader: Reader,
        loading: Loading,
        *,
        collate: Collate,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        cursor: Cursor | None = None,
    ):
        if global_batch_size < 1 or micro_batch_size < 1 or global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"global_batch_size {global_batch_size} must be a positive multiple of micro_batch_size x world_size = "
                f"{micro_batch_size} x {world_size} = {micro_batch_size * world_size}; change one of the three"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must lie in 0..{world_size - 1} (world_size {world_size})")
        self.reader = reader
        self.global_batch_size = global_batch_size
        self.accumulation_steps = global_batch_size // (micro_batch_size * world_size)
        self.total_samples = sum(reader.sizes)
        if self.total_samples < global_batch_size:
            raise ValueError(
                f"the sources hold {self.total_samples} samples, fewer than one global batch of {global_batch_size}; "
                "lower --train.global_batch_size and --train.micro_batch_size, or add data"
            )
        self.steps_per_epoch = self.total_samples // global_batch_size
        self.bad_reads = 0
        self._loading = loading
        self._skipped: dict[tuple[str, str], SkippedSample] = {}
        self.samples_read = 0
        self._start = self._checked(cursor).samples if cursor else 0
        slices = _Slices(
            start=self._start,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            rank=rank,
            accumulation_steps=self.accumulation_steps,
        )
        self._loaded: Iterator[Any] = iter(
            DataLoader(
                _MicroBatches(reader, collate),
                sampler=slices,
                batch_size=None,
                num_workers=loading.num_workers,
                collate_fn=_as_it_is,
                prefetch_factor=loading.prefetch_batches if loading.num_workers else None,
                worker_init_fn=_leave_signals_to_the_parent,
                # its own, so that the state of torch's global generator does not depend on there being a loader
                generator=torch.Generator().manual_seed(0),
            )
        )
        if loading.num_workers:
            _with_workers.add(self._loaded)
        self._micro_batches = 0

    def __iter__(self) -> "OrderedLoader":
        return self

    def __next__(self) -> tuple[dict[str, Any], Cursor]:
        start, size, content, skipped = next(self._loaded)
        batch = {**self._batch(content), "index": torch.arange(start, start + size)}
        self.samples_read += size
        self._note(skipped)
        self._micro_batches += 1
        steps_done = self._micro_batches // self.accumulation_steps
        return batch, self.cursor_at(self._start + steps_done * self.global_batch_size)

    def _batch(self, content: Any) -> dict[str, Any]:
        """What a task sees of what `collate` made in a worker."""
        raise NotImplementedError

    def cursor_at(self, samples: int) -> Cursor:
        """The cursor after `samples` samples of the global order."""
        counts = self.reader.mixture.counts(samples)
        return Cursor(samples=samples, sources=tuple(zip(self.reader.names, counts, self.reader.sizes, strict=True)))

    @property
    def skipped(self) -> list[SkippedSample]:
        """The different unusable samples that this rank has met."""
        return list(self._skipped.values())

    def close(self) -> None:
        """Stop the worker processes and wait for them; the loader is then at its end. May be called again."""
        loaded, self._loaded = self._loaded, iter(())
        if loaded in _with_workers:
            _shut_down(loaded)

    def _checked(self, cursor: Cursor) -> Cursor:
        expected = self.cursor_at(cursor.samples)
        if cursor.sources and cursor.sources != expected.sources:
            raise ValueError(
                f"the cursor was written with sources (name, consumed, size) {cursor.sources}; now they are "
                f"{expected.sources}. Restore sources, weights and seed to resume, or start anew with another --output."
            )
        return expected

    def _note(self, skipped: list[SkippedSample]) -> None:
        for item in skipped:
            self.bad_reads += 1
            if (item.where, item.key) in self._skipped:
                continue
            self._skipped[item.where, item.key] = item
            number = len(self._skipped)
            if number <= _NAMED or number & (number - 1) == 0:
                logger.warning("skipped %s in %s: %s (%d so far)", item.key, item.where, item.reason, number)
        # a small set of data comes round often, and what was tolerated once is tolerated again
        if skipped and len(self._skipped) > self._loading.min_bad_samples:
            refuse_too_many(self._loading, bad=self.bad_reads, read=self.samples_read, examples=self.skipped)


class Loader(OrderedLoader):
    """Micro-batches of pictures, or of codes, with their captions; see OrderedLoader for the order and the cursor.

    batch: `images` float32 [m, 3, S, S] in [-1, 1], or `codes` int64 [m, L] of encoded shards; `captions` and
    `keys` list[str]; `index` int64 [m], the place of every sample in the run's global order; `sample_seed` int64
    [m], for draws that belong to a sample; `records` list[dict | None] where the configuration asks for them.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        cursor: Cursor | None = None,
    ):
        self.config = config
        self._pinned = torch.cuda.is_available()
        reader = SampleReader(config, seed=seed)
        shared = None
        if config.num_workers and reader.codes is None:
            shape = (micro_batch_size, 3, config.image_size, config.image_size)
            # those that workers may be ahead, and the one that is being used here
            shared = SharedBatches(shape, count=config.num_workers * config.prefetch_batches + 1)
        self._stack = Stack(shared)
        super().__init__(
            reader,
            config,
            collate=self._stack,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            cursor=cursor,
        )

    def _batch(self, content: tuple[torch.Tensor | int, dict[str, Any]]) -> dict[str, Any]:
        stored, batch = content
        # the pictures and not the bytes they come from: they are what is copied to the device
        return present(self._stack.find(stored), batch, pinned=self._pinned)


def refuse_too_many(config: Loading, *, bad: int, read: int, examples: Sequence[SkippedSample]) -> None:
    """Raise TooManyBadSamples when `bad` of `read` samples are more than the configuration allows."""
    if bad <= max(config.min_bad_samples, config.max_bad_fraction * read):
        return
    named = "; ".join(f"{item.key} in {item.where}: {item.reason}" for item in examples[:3])
    raise TooManyBadSamples(
        f"{bad} of {read} samples cannot be used, more than data.max_bad_fraction {config.max_bad_fraction} "
        f"(and data.min_bad_samples {config.min_bad_samples}). Examples: {named}. "
        "Repair the data (`tokenflow make-shards` leaves such pictures out), or raise the limit."
    )


_with_workers: WeakSet[Any] = WeakSet()
"""The iterators of PyTorch that have worker processes."""


@atexit.register
def _shut_down_all() -> None:
    # at exit multiprocessing sends SIGTERM to its daemons and waits for them; the workers would not hear it
    for loaded in list(_with_workers):
        _shut_down(loaded)


def _shut_down(loaded: Any) -> None:
    _with_workers.discard(loaded)
    # not left to garbage collection: a traceback may hold the iterator
    loaded._shutdown_workers()
    for worker in loaded._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore stop signals in a worker: they reach the whole process group, and the run saves before it stops.

    Workers end when the loader is closed or when their parent is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class _Slices:
    """Endless (number, start, size) slices of the global order for one rank."""

    def __init__(
        self, *, start: int, global_batch_size: int, micro_batch_size: int, rank: int, accumulation_steps: int
    ):
        self.start = start
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.offsets = [(rank * accumulation_steps + a) * micro_batch_size for a in range(accumulation_steps)]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        number, step_start = 0, self.start
        while True:
            for offset in self.offsets:
                yield number, step_start + offset, self.micro_batch_size
                number += 1
            step_start += self.global_batch_size


class _MicroBatches(Dataset):
    """Reads a slice of the global order as one micro-batch."""

    def __init__(self, reader: Reader, collate: Collate):
        self.reader = reader
        self.collate = collate

    def __getitem__(self, span: tuple[int, int, int]) -> tuple[int, int, Any, list[SkippedSample]]:
        number, start, size = span
        samples, skipped = [], []
        for position in range(start, start + size):
            sample, bad = self.reader.read(position)
            samples.append(sample)
            skipped += bad
        return start, size, self.collate(samples, number), skipped


def _as_it_is(content: Any) -> Any:
    """In place of PyTorch's own, which walks through every record and makes tensors, each with memory to be shared."""
    return content

"""Reads conversations of a run's sources with their pictures, in the run's global order or one after the other."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tokenflow.data.conversation_config import ConversationConfig
from tokenflow.data.conversation_files import ConversationFile
from tokenflow.data.conversation_images import open_images
from tokenflow.data.conversations import Turn
from tokenflow.data.grouping import GroupedOrder
from tokenflow.data.hashing import mix
from tokenflow.data.loader import refuse_too_many
from tokenflow.data.mixture import Mixture
from tokenflow.data.order import SourceOrder
from tokenflow.data.samples import BadSample
from tokenflow.data.sources import SkippedSample, unique_names

logger = logging.getLogger(__name__)
_MAX_ATTEMPTS = 32
_NAMED = 20
"""Unusable conversations of a file that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class ConversationSample:
    """A conversation with its pictures, as stored: nothing is tokenised, cropped or padded yet."""

    id: str
    where: str
    """Its file."""
    turns: tuple[Turn, ...]
    """("user" or "assistant", text) in turn; `<image>` in the text stands for a picture."""
    images: tuple[Image.Image, ...] | tuple[np.ndarray, ...]
    """RGB, of any size, in the order of the marks; or their codes, int64 [L], where those are stored."""
    image_names: tuple[str, ...]
    """As the file names them."""
    seed: int
    """A function of (seed, source, epoch, conversation): for draws that belong to the conversation."""


Prepare = Callable[[ConversationSample], Any]
"""From a stored conversation to what a task wants, in a worker process; may raise BadSample."""


def as_stored(sample: ConversationSample) -> ConversationSample:
    """The preparation that changes nothing."""
    return sample


class ConversationReader:
    """Reads single conversations; the same arguments give the same ones in any process.

    Attributes: `names` and `sizes`, of the sources; `refused`, the first conversations that cannot be used of every
    file, and `num_refused`, how many there are: they are no part of the order.

    Args:
        config: Sources and order.
        seed: Of the order.
        global_batch_size: What is grouped, if anything is.
        prepare: Called with every conversation.

    Raises:
        ValueError: A file that does not exist, is damaged, or has no conversations; pictures that are nowhere.
        TooManyBadSamples: More conversations are unusable than the configuration allows.
    """

    def __init__(
        self,
        config: ConversationConfig,
        *,
        seed: int,
        global_batch_size: int = 1,
        prepare: Prepare = as_stored,
    ):
        self.config = config
        self.seed = seed
        self.prepare = prepare
        self.names = unique_names([(source.name, source.path) for source in config.sources])
        self.files = [ConversationFile(source.path) for source in config.sources]
        self.sizes = [file.size for file in self.files]
        self._refuse()
        stores = {path: open_images(path) for path in dict.fromkeys(config.image_paths)}
        self._images = [stores[path] for path in config.image_paths]
        weights = [source.weight or size for source, size in zip(config.sources, self.sizes, strict=True)]
        self.mixture = Mixture(weights, seed=seed)
        self._orders = [SourceOrder([size], seed=seed, source=number) for number, size in enumerate(self.sizes)]
        self._grouped = GroupedOrder(
            self._key,
            global_batch_size=global_batch_size,
            total_samples=sum(self.sizes),
            batches=config.grouping_batches,
            seed=seed,
        )

    def read(self, position: int) -> tuple[Any, list[SkippedSample]]:
        """The prepared conversation at a global position, and the unusable ones it stands in for.

        An unusable one is replaced by another of the same source, with pictures if it has some, chosen by the same
        numbers on every rank. Raises ValueError when the source seems to have none that is usable.
        """
        if self.config.grouping != "none":
            position = self._grouped[position]
        number, place = self.mixture[position]
        epoch, index = self._orders[number][place]
        skipped: list[SkippedSample] = []
        alike = None
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                alike = self._alike(number, index) if alike is None else alike
                index = int(alike[mix(self.seed, number, epoch, place, attempt) % len(alike)])
            try:
                return self._load(number, epoch, index), skipped
            except BadSample as error:
                skipped.append(self._skipped(number, index, error))
        first = skipped[0]
        raise ValueError(
            f"source {self.names[number]!r}: {_MAX_ATTEMPTS} conversations in a row are unusable. The first is "
            f"{first.key} in {first.where}: {first.reason}"
        )

    def read_in_order(self, index: int) -> Any | SkippedSample:
        """Conversation `index` of all sources one after the other."""
        for number, size in enumerate(self.sizes):
            if index < size:
                try:
                    return self._load(number, 0, index)
                except BadSample as error:
                    return self._skipped(number, index, error)
            index -= size
        raise IndexError("conversation index beyond the last source")

    def _load(self, number: int, epoch: int, index: int) -> Any:
        file = self.files[number]
        record = file.read(index)
        store = self._images[number]
        sample = ConversationSample(
            id=record.id,
            where=file.path,
            turns=record.turns,
            images=tuple(store.read(name) for name in record.images),
            image_names=record.images,
            seed=mix(self.seed, number, epoch, index),
        )
        return self.prepare(sample)

    def _key(self, position: int) -> tuple[int, int]:
        """(whether it has pictures, length) of the conversation at a position that is not grouped."""
        number, place = self.mixture[position]
        _, index = self._orders[number][place]
        file = self.files[number]
        images = int(file.images[index])
        by_length = self.config.grouping == "modality_and_length"
        return int(images > 0), int(file.words[index]) + images * self.config.image_length if by_length else 0

    def _alike(self, number: int, index: int) -> np.ndarray:
        """The conversations of a source that have pictures, or have none, as the given one does."""
        with_images = self.files[number].images > 0
        return np.flatnonzero(with_images == with_images[index])

    def _skipped(self, number: int, index: int, error: BadSample) -> SkippedSample:
        file = self.files[number]
        return SkippedSample(key=file.read(index).id, where=file.path, reason=str(error))

    def _refuse(self) -> None:
        """Name what cannot be used, count it, and stop when that is too much or everything."""
        self.refused: list[SkippedSample] = []
        for file in self.files:
            found = [SkippedSample(key=i, where=file.path, reason=why) for i, why in file.faults(at_most=_NAMED)]
            for item in found:
                logger.warning("skipped %s in %s: %s", item.key, item.where, item.reason)
            if file.unusable > len(found):
                logger.warning("skipped %d more in %s", file.unusable - len(found), file.path)
            self.refused += found
        self.num_refused = sum(file.unusable for file in self.files)
        everything = self.num_refused + sum(self.sizes)
        refuse_too_many(self.config, bad=self.num_refused, read=everything, examples=self.refused)
        for file in self.files:
            if not file.size:
                raise ValueError(f"{file.path!r} has no conversation that can be used; is it empty?")

"""Conversations as tasks take them: prepared in the loader's processes, and a few of them kept for evaluations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenflow.data import ConversationConfig, ConversationLoader, ConversationReader, ConversationSample
from tokenflow.data.samples import BadSample
from tokenflow.train import Engine, distributed
from tokenflow.understanding.batching import MultimodalBatch, Packing, collate
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.conversation_tokens import IGNORE, IMAGE_TOKEN, ConversationTokenizer, Tokens
from tokenflow.understanding.preprocess import read_pictures


class Prepared(NamedTuple):
    """A conversation, ready to be batched."""

    tokens: Tokens
    """Ids and labels."""
    images: Tensor
    """Its images, [I, 3, S, S] in [-1, 1], or their codes, int64 [I, L]."""


class PrepareConversation:
    """Tokens and square images of a stored conversation; BadSample where the longest text holds no answer."""

    def __init__(self, reader: ConversationTokenizer, config: UnderstandingConfig) -> None:
        self.reader, self.config = reader, config

    def __call__(self, sample: ConversationSample) -> Prepared:
        """Prepare one; runs in the loader's processes."""
        config = self.config
        tokens = self.reader(sample.turns)
        if not teaches(tokens, image_tokens=config.image_tokens, max_length=config.max_length):
            raise BadSample(
                f"no answer begins within max_length {config.max_length} (an image takes {config.image_tokens} "
                "positions); raise max_length, or leave it out"
            )
        if sample.images and isinstance(sample.images[0], np.ndarray):
            return Prepared(tokens, torch.from_numpy(np.stack(sample.images)))
        return Prepared(tokens, read_pictures(sample.images, size=config.image_size, aspect=config.aspect))


def teaches(tokens: Tokens, *, image_tokens: int, max_length: int) -> bool:
    """Whether a learned token lies within the first `max_length` positions."""
    position = 0
    for token, label in zip(tokens.ids, tokens.labels, strict=True):
        position += image_tokens if token == IMAGE_TOKEN else 1
        if label != IGNORE:
            return position <= max_length
    return False


def conversation_loader(prepare: Callable[[ConversationSample], Any]) -> Callable[..., ConversationLoader]:
    """For `train_stage`: the loader of conversations, prepared like this."""
    return partial(ConversationLoader, prepare=prepare)


def batch_of(
    samples: list[Prepared], *, image_tokens: int, max_length: int, packing: Packing = "none"
) -> tuple[MultimodalBatch, Tensor]:
    """(batch, its images [I, 3, S, S] or their codes [I, L]) on this rank's device."""
    batch = collate(
        [sample.tokens for sample in samples], image_tokens=image_tokens, max_length=max_length, packing=packing
    )
    images = [sample.images for sample in samples if len(sample.images)] or [samples[0].images]
    return batch.to(distributed.device()), torch.cat(images).to(distributed.device())


class EvaluationConversations:
    """This rank's part of the first conversations of some sources, in batches; iterable anew.

    All ranks get equally many batches, as ZeRO-3 needs; what fills them up counts nothing.
    """

    def __init__(
        self,
        config: ConversationConfig,
        *,
        sources: tuple[Any, ...],
        at_most: int,
        batch_size: int,
        prepare: Callable[[ConversationSample], Prepared],
    ) -> None:
        """`sources` in place of the configuration's own, where there are some."""
        chosen = dataclasses.replace(config, sources=sources or config.sources, grouping="none")
        self._reader = ConversationReader(chosen, seed=0, prepare=prepare)
        self._count = min(at_most, sum(self._reader.sizes))
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[list[Prepared], bool]]:
        """(conversations, whether they count)."""
        rank, world_size = distributed.rank(), distributed.world_size()
        starts = range(0, self._count, self._batch_size)
        for turn in range(0, len(starts), world_size):
            counts = turn + rank < len(starts)
            start = starts[turn + rank] if counts else 0
            stop = min(start + self._batch_size, self._count)
            found = [self._reader.read_in_order(index) for index in range(start, stop)]
            usable = [sample for sample in found if isinstance(sample, Prepared)]
            if not usable:
                raise ValueError(
                    f"conversations {start} to {stop - 1} of the evaluation are all unusable. The first is "
                    f"{found[0].key} in {found[0].where}: {found[0].reason}"
                )
            yield usable, counts


def token_means(engine: Engine, batches: Iterable[tuple[tuple[Any, ...], bool]]) -> dict[str, float]:
    """Mean loss and accuracy over the learned tokens of all ranks.

    Args:
        engine: Its bare module is called, equally often on every rank.
        batches: (arguments of the module, whether the batch counts).
    """
    totals = torch.zeros(3, dtype=torch.float64, device=engine.device)
    for inputs, counts in batches:
        with engine.autocast():
            output = engine.module(*inputs)
        tokens = output.tokens.double() * counts
        totals += torch.stack([tokens, tokens * output.loss, tokens * output.accuracy])
    tokens, loss, accuracy = distributed.sum_over_ranks(totals).tolist()
    return {"loss": loss / max(tokens, 1), "accuracy": accuracy / max(tokens, 1)}

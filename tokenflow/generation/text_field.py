"""Captions as the text part of a sequence: BOS and text, cut to the field, then the opening tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflow.generation.config import GeneratorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTokens:
    """Text parts of a batch."""

    ids: Int[Tensor, "B T"]
    """Padded on the left with `pad_token`; the last one is followed by the image."""
    lengths: tuple[int, ...]
    """Tokens of each row that are not padding."""

    def to(self, device: torch.device | str) -> TextTokens:
        """The same on another device."""
        return TextTokens(self.ids.to(device), self.lengths)

    def row(self, index: int) -> Tensor:
        """The tokens of one row, without padding."""
        return self.ids[index, self.ids.shape[1] - self.lengths[index] :]


def pad_rows(rows: Sequence[Sequence[int]], *, pad_token: int, columns: int | None = None) -> TextTokens:
    """Rows of token ids as one batch, padded on the left to the longest or to `columns`."""
    lengths = tuple(len(row) for row in rows)
    if not rows or min(lengths) < 1:
        raise ValueError(f"rows have {lengths} tokens; expected at least one row and one token each.")
    width = max(lengths) if columns is None else columns
    if width < max(lengths):
        raise ValueError(f"a row has {max(lengths)} tokens; expected at most {width}. Cut it first.")
    ids = torch.full((len(rows), width), pad_token, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.as_tensor(row, dtype=torch.int64)
    return TextTokens(ids, lengths)


class TextField:
    """Turns captions into `TextTokens` for one generator, the same in training and in sampling."""

    def __init__(self, text_tokenizer: PreTrainedTokenizerBase, config: GeneratorConfig) -> None:
        if len(text_tokenizer) > config.pad_token and config.pad_token not in (
            text_tokenizer.pad_token_id,
            len(text_tokenizer) - 1,
        ):
            raise ValueError(
                f"the text tokenizer has {len(text_tokenizer)} tokens; the generator's text ids end at pad_token "
                f"{config.pad_token}. Use the tokenizer it was trained with, or config.with_text_vocabulary("
                f"{len(text_tokenizer)})."
            )
        self.text_tokenizer = text_tokenizer
        self.config = config
        self._announced: set[str] = set()

    def encode(self, caption: str, *, warn: bool = False) -> list[int]:
        """Token ids of one caption: cut to `text_length`, then the opening tokens.

        An empty caption is BOS alone, or `pad_token` where the tokenizer has none. With `warn`, what is cut is
        logged, once a caption.
        """
        ids = list(self.text_tokenizer(caption)["input_ids"])
        eos = self.text_tokenizer.eos_token_id
        if len(ids) > 1 and eos is not None and ids[-1] == eos:
            ids.pop()  # some tokenizers close the text; here the image follows
        limit = self.config.text_length
        if warn and len(ids) > limit and caption not in self._announced:
            self._announced.add(caption)
            cut = self.text_tokenizer.decode(ids[limit:])
            log.warning("a prompt has %d tokens and the text field %d; cut off: %r", len(ids), limit, cut)
        return (ids[:limit] or [self.config.pad_token]) + list(self.config.image_open)

    def __call__(
        self, captions: Sequence[str], *, pad_to: Literal["longest", "field"] = "longest", warn: bool = False
    ) -> TextTokens:
        """Captions of a batch; `field` gives every batch the same shape."""
        columns = self.config.field_length if pad_to == "field" else None
        rows = [self.encode(caption, warn=warn) for caption in captions]
        return pad_rows(rows, pad_token=self.config.pad_token, columns=columns)


def class_tokens(labels: Sequence[int | None], config: GeneratorConfig) -> TextTokens:
    """Class prompts; None is no class, the unconditional prompt. ValueError for a label out of range."""
    for label in labels:
        if label is not None and not 0 <= label < config.num_classes:
            raise ValueError(f"class {label} does not exist; expected 0 to {config.num_classes - 1}, or None.")
    return pad_rows([[config.pad_token if label is None else label] for label in labels], pad_token=config.pad_token)

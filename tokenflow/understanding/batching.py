"""Conversations as one batch: rows padded, or several conversations packed into one row.

Everything here is bookkeeping on the CPU; features of images are computed elsewhere and join in the model's forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflow.ops.attention_layout import AttentionLayout, Sample
from tokenflow.understanding.conversation_tokens import IGNORE, IMAGE_TOKEN, Tokens

Packing = Literal["none", "rows"]


class MultimodalBatch(NamedTuple):
    """Rows of tokens and images; `to` moves them to a device."""

    ids: Int[Tensor, "B L"]
    """Token ids; 0 at images and padding."""
    image_rows: Int[Tensor, "B L"]
    """Row of the batch's features, all images behind one another, that stands at a position; -1: the token."""
    positions: Int[Tensor, "B L"]
    """For the rotation: 0, 1, 2, ... in each conversation."""
    predict_at: Int[Tensor, "tokens"]
    """Positions of the flattened rows whose next token is learned."""
    targets: Int[Tensor, "tokens"]
    """That token."""
    layout: AttentionLayout
    """Which positions see which: every conversation itself alone."""
    num_images: int
    """Images whose features are needed, in the order of the conversations, those cut off included."""
    cut: tuple[int, ...]
    """For each conversation the positions that did not fit `max_length`."""

    def to(self, device: torch.device | str) -> MultimodalBatch:
        """The same on another device."""
        return self._replace(
            **{name: value.to(device) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        )


class _Row(NamedTuple):
    """One conversation with its images spliced in, cut to `max_length`."""

    ids: Tensor
    labels: Tensor
    image_rows: Tensor
    cut: int


def collate(
    conversations: Sequence[Tokens],
    *,
    image_tokens: int,
    max_length: int,
    packing: Packing = "none",
) -> MultimodalBatch:
    """A batch of conversations.

    Args:
        conversations: Of `ConversationTokenizer`; each `IMAGE_TOKEN` becomes `image_tokens` positions.
        image_tokens: Positions an image takes.
        max_length: What lies behind is cut off. With `rows`, also the length up to which rows are filled.
        packing: `none`: a row each, padded to the longest. `rows`: conversations, in their order, go to the first row
            with room; they do not see one another, and the loss is that of `none`.
    """
    first, rows = 0, []
    for tokens in conversations:
        rows.append(_splice(tokens, image_tokens=image_tokens, first_image=first, max_length=max_length))
        first += tokens.num_images
    if not rows:
        raise ValueError("no conversations; expected at least one.")
    lengths = [len(row.ids) for row in rows]
    bins = [[number] for number in range(len(rows))] if packing == "none" else pack(lengths, capacity=max_length)
    width = max(sum(lengths[n] for n in members) for members in bins)
    ids = torch.zeros(len(bins), width, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    image_rows = torch.full_like(ids, -1)
    labels = torch.full_like(ids, IGNORE)
    samples = []
    for number, members in enumerate(bins):
        start, found = 0, []
        for member in members:
            row, length = rows[member], lengths[member]
            span = slice(start, start + length)
            ids[number, span], image_rows[number, span] = row.ids, row.image_rows
            labels[number, span] = row.labels
            positions[number, span] = torch.arange(length)
            found.append(Sample(start, length))
            start += length
        samples.append(tuple(found))
    # A conversation's first token has no label, so none is predicted from the conversation before it.
    flat = _next(labels)
    predict_at = (flat != IGNORE).nonzero()[:, 0]
    layout = AttentionLayout(tuple(samples), width)
    cut = tuple(row.cut for row in rows)
    return MultimodalBatch(ids, image_rows, positions, predict_at, flat[predict_at], layout, first, cut)


def pack(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Numbers of the items in each bin: every item goes to the first bin with room, in order."""
    bins: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        place = next((n for n, left in enumerate(room) if left >= length), None)
        if place is None:
            bins.append([number])
            room.append(capacity - length)
        else:
            bins[place].append(number)
            room[place] -= length
    return bins


def spliced_length(tokens: Tokens, *, image_tokens: int) -> int:
    """Positions of a conversation with its images, before anything is cut."""
    return len(tokens.ids) + tokens.num_images * (image_tokens - 1)


def _splice(tokens: Tokens, *, image_tokens: int, first_image: int, max_length: int) -> _Row:
    ids = torch.tensor(tokens.ids, dtype=torch.int64)
    labels = torch.tensor(tokens.labels, dtype=torch.int64)
    is_image = ids == IMAGE_TOKEN
    repeats = torch.where(is_image, image_tokens, 1)
    labels = labels.masked_fill(is_image, IGNORE).repeat_interleave(repeats)[:max_length]
    # Conversations begin with what is given, so their first token is never learned, even where nothing is given.
    labels[:1] = IGNORE
    spliced = ids.repeat_interleave(repeats)
    at_image = spliced == IMAGE_TOKEN
    order = at_image.cumsum(0) - 1 + first_image * image_tokens
    image_rows = torch.where(at_image, order, -1)
    kept = spliced.masked_fill(at_image, 0)[:max_length]
    return _Row(kept, labels, image_rows[:max_length], max(0, len(spliced) - max_length))


def _next(labels: Tensor) -> Tensor:
    """The label of the next position of its row, flattened; the last has none."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)], dim=1).flatten()

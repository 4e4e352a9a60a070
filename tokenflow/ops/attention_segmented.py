"""Exact attention without a mask over the row: causal text, then one unmasked call a scale over its whole prefix.

Every call is a plain scaled-dot-product attention that reaches the fused kernels. Rows whose images lie at the same
positions share the calls; a small [B, 1, 1, K] key mask hides padding that lies before some of their samples. Legend:
B rows, H query heads, G key/value heads, L positions, D head width, R rows of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.ops.attention_layout import AttentionLayout, Sample

# A tail (text after an image) is attended in pieces, so that its mask stays rows x this x keys.
_TAIL_QUERIES = 128


def segmented_attention(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout) -> Tensor:
    """Attention of [B, H, L, D] queries over [B, G, L, D] keys and values under `layout`."""
    groups = layout.derived("segmented", query.device, lambda: _groups(layout, query.device))
    if len(groups) == 1:
        return _attend_group(query, key, value, groups[0])
    parts = []
    for group in groups:
        q, k, v = (x.index_select(0, group.rows) for x in (query, key, value))
        parts.append(_attend_group(q, k, v, group))
    order = layout.derived("segmented rows", query.device, lambda: torch.cat([g.rows for g in groups]).argsort())
    return torch.cat(parts).index_select(0, order)


def full_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Every query sees every key, but those that `mask`, [B, 1, 1, K] with True for visible, hides.

    Grouped key/value heads need no copies here: the query heads of a group are laid behind one another as queries.
    """
    heads, groups, count = query.shape[1], key.shape[1], query.shape[2]
    if heads == groups:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    folded = query.unflatten(1, (groups, heads // groups)).flatten(2, 3)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return out.unflatten(2, (heads // groups, count)).flatten(1, 2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Query i sees keys 0 to i; or, with `mask` [B, 1, Q, K], the keys that it shows."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


@dataclass(frozen=True)
class _Text:
    """Causal positions start..stop of every row; or, where rows differ, positions gathered by `index` [R, T]."""

    start: int
    stop: int
    index: Tensor | None


@dataclass(frozen=True)
class _Block:
    """Queries start..last over keys first..last of the same positions in all rows; `mask` is None where all is seen."""

    start: int
    first: int
    last: int
    mask: Tensor | None


@dataclass(frozen=True)
class _Group:
    """Rows that share their calls; `order` [R, L] puts the calls' outputs in place, its last value meaning zeros."""

    rows: Tensor
    segments: tuple[_Text | _Block, ...]
    order: Tensor | None


def _attend_group(query: Tensor, key: Tensor, value: Tensor, group: _Group) -> Tensor:
    """Outputs of a group's rows, [R, H, L, D], with zeros at padding."""
    if not group.segments:
        return torch.zeros_like(query)
    outputs: list[Tensor] = []
    # Last positions first, each prefix a slice of the one before: backward then adds gradients prefix by prefix.
    for segment in reversed(group.segments):
        if isinstance(segment, _Block):
            query, key, value = (x[:, :, : segment.last] for x in (query, key, value))
            q, k, v = query[:, :, segment.start :], key[:, :, segment.first :], value[:, :, segment.first :]
            causal = segment.mask is not None and segment.mask.shape[2] > 1
            out = (causal_attention if causal else full_attention)(q, k, v, segment.mask)
        else:
            out = causal_attention(*(_text_of(x, segment) for x in (query, key, value)))
        outputs.append(out.transpose(1, 2))
    together = torch.cat(outputs[::-1], 1)
    if group.order is not None:
        together = _take(F.pad(together, (0, 0, 0, 0, 0, 1)), group.order)
    return together.transpose(1, 2)


def _text_of(x: Tensor, text: _Text) -> Tensor:
    if text.index is None:
        return x[:, :, text.start : text.stop]
    return _take(x.transpose(1, 2), text.index).transpose(1, 2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Positions `index` [R, T] of x [R, N, H, D]."""
    offsets = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + offsets).flatten()).unflatten(0, index.shape)


def _groups(layout: AttentionLayout, device: torch.device) -> list[_Group]:
    by_shape: dict[tuple, list[int]] = {}
    for number, row in enumerate(layout.rows):
        by_shape.setdefault(tuple(_shape(sample) for sample in row), []).append(number)
    return [_plan([layout.rows[n] for n in numbers], numbers, layout.length, device) for numbers in by_shape.values()]


def _shape(sample: Sample) -> tuple:
    """What samples must share for their calls to be one; text alone may lie anywhere."""
    return (sample.image_start, sample.scales, sample.tail) if sample.scales else ()


def _plan(rows: list[tuple[Sample, ...]], numbers: list[int], length: int, device: torch.device) -> _Group:
    segments: list[_Text | _Block] = []
    order = torch.full((len(rows), length), -1)
    count = 0
    for samples in zip(*rows, strict=True):
        text = [sample.text if sample.scales else sample.text + sample.tail for sample in samples]
        if max(text):
            segments.append(_text_segment(samples, text, device))
            for row, (sample, size) in enumerate(zip(samples, text, strict=True)):
                order[row, sample.start : sample.start + size] = torch.arange(count, count + size)
            count += max(text)
        blocks = _block_segments(samples, device) if samples[0].scales else []
        for block in blocks:
            order[:, block.start : block.last] = torch.arange(count, count + block.last - block.start)
            count += block.last - block.start
        segments += blocks
    in_place = count == length and torch.equal(order, torch.arange(length).expand_as(order))
    order = order.masked_fill(order < 0, count).to(device)
    return _Group(torch.tensor(numbers, device=device), tuple(segments), None if in_place else order)


def _text_segment(samples: tuple[Sample, ...], text: list[int], device: torch.device) -> _Text:
    starts = [sample.start for sample in samples]
    if len(set(starts)) == 1 and len(set(text)) == 1:
        return _Text(starts[0], starts[0] + text[0], None)
    # Aligned at their starts, shorter texts repeat a position behind their end, where causal queries never look.
    offsets = torch.arange(max(text)).expand(len(text), -1).minimum(torch.tensor(text)[:, None] - 1).clamp_min(0)
    return _Text(0, max(text), (torch.tensor(starts)[:, None] + offsets).to(device))


def _block_segments(samples: tuple[Sample, ...], device: torch.device) -> list[_Block]:
    starts = torch.tensor([sample.start for sample in samples])
    first = int(starts.min())
    uniform = bool((starts == first).all())
    shared = samples[0]
    blocks, previous = [], shared.image_start
    for end in shared.scale_ends:
        mask = None if uniform else _visible(starts, first, end, device)
        blocks.append(_Block(previous, first, end, mask))
        previous = end
    for start in range(shared.tail_start, shared.end, _TAIL_QUERIES):
        stop = min(start + _TAIL_QUERIES, shared.end)
        mask = None if uniform else _visible(starts, first, stop, device)
        if stop - start > 1:
            causal = torch.arange(first, stop) <= torch.arange(start, stop)[:, None]
            mask = causal[None, None].to(device) if mask is None else mask & causal.to(device)
        blocks.append(_Block(start, first, stop, mask))
    return blocks


def _visible(starts: Tensor, first: int, end: int, device: torch.device) -> Tensor:
    return (torch.arange(first, end) >= starts[:, None])[:, None, None].to(device)

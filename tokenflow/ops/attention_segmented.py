"""Exact attention without a mask over the row: causal text, then one unmasked call a scale over its whole prefix.

Every call is a plain scaled-dot-product attention that reaches the fused kernels. Rows whose images lie at the same
positions share the calls; a small [B, 1, 1, K] key mask hides padding that lies before some of their samples, and
padded text of at most 128 positions is one masked call. Legend:
B rows, H query heads, G key/value heads, L positions, D head width, R rows of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.ops.attention_layout import AttentionLayout, Sample

# A tail (text after an image) is attended in pieces, so that its mask stays rows x this x keys. Text padded on the left
# has a mask up to this length, and is gathered to the start of its rows beyond.
_MASKED_QUERIES = 128


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
    """Rows that share their calls. Their outputs, one behind another, are the rows with zeros before and behind; where
    that is not so, `order` [R, L] puts them in place, its largest value meaning zeros."""

    rows: Tensor
    segments: tuple[_Text | _Block, ...]
    padding: tuple[int, int]
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
    elif any(group.padding):
        together = F.pad(together, (0, 0, 0, 0, *group.padding))
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
            segment, offsets, size = _text_segment(samples, text, device)
            segments.append(segment)
            for row, sample in enumerate(samples):
                begin = count + offsets[row]
                order[row, sample.start : sample.start + text[row]] = torch.arange(begin, begin + text[row])
            count += size
        blocks = _block_segments(samples, device) if samples[0].scales else []
        for block in blocks:
            order[:, block.start : block.last] = torch.arange(count, count + block.last - block.start)
            count += block.last - block.start
        segments += blocks
    indices = torch.tensor(numbers, device=device)
    shifts = (torch.arange(length) - order)[order >= 0].unique().tolist()
    if len(shifts) == 1 and 0 <= shifts[0] <= length - count:
        return _Group(indices, tuple(segments), (shifts[0], length - count - shifts[0]), None)
    return _Group(indices, tuple(segments), (0, 0), order.masked_fill(order < 0, count).to(device))


def _text_segment(
    samples: tuple[Sample, ...], text: list[int], device: torch.device
) -> tuple[_Text | _Block, list[int], int]:
    """The call for a sample's text in all rows, where in its output each row's text begins, and the output's length."""
    starts = [sample.start for sample in samples]
    first, longest = min(starts), max(text)
    if max(starts) == first:
        # Shorter texts end in padding that no text sees.
        return _Text(first, first + longest, None), [0] * len(starts), longest
    end = samples[0].image_start
    if samples[0].scales and end - first <= _MASKED_QUERIES:
        keys = torch.arange(first, end)
        visible = (keys <= keys[:, None]) & _visible(starts, first, end)
        # Padding sees itself: a row of the mask without a key gives NaN.
        mask = visible | (keys == keys[:, None])
        return _Block(first, first, end, mask.to(device)), [start - first for start in starts], end - first
    # Aligned at their starts, shorter texts repeat a position behind their end, where causal queries never look.
    offsets = torch.arange(longest).expand(len(text), -1).minimum(torch.tensor(text)[:, None] - 1).clamp_min(0)
    return _Text(0, longest, (torch.tensor(starts)[:, None] + offsets).to(device)), [0] * len(starts), longest


def _block_segments(samples: tuple[Sample, ...], device: torch.device) -> list[_Block]:
    starts = [sample.start for sample in samples]
    first, uniform = min(starts), min(starts) == max(starts)
    shared = samples[0]
    blocks, previous = [], shared.image_start
    for end in shared.scale_ends:
        mask = None if uniform else _visible(starts, first, end).to(device)
        blocks.append(_Block(previous, first, end, mask))
        previous = end
    for start in range(shared.tail_start, shared.end, _MASKED_QUERIES):
        stop = min(start + _MASKED_QUERIES, shared.end)
        mask = None if uniform else _visible(starts, first, stop).to(device)
        if stop - start > 1:
            causal = torch.arange(first, stop) <= torch.arange(start, stop)[:, None]
            mask = causal[None, None].to(device) if mask is None else mask & causal.to(device)
        blocks.append(_Block(start, first, stop, mask))
    return blocks


def _visible(starts: list[int], first: int, end: int) -> Tensor:
    """True at the keys first..end that lie in each row's sample, [R, 1, 1, K]."""
    return (torch.arange(first, end) >= torch.tensor(starts)[:, None])[:, None, None]

"""Attention by flash-attn's variable-length kernel: causal segments in one call, all scales over prefixes in another.

The segments are those of the segmented backend, of any rows together, and padding is never computed. Keys and values of
a prefix are gathered once for each scale that sees it (about 3.5 x L for the paper's 817 image tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.ops.attention_layout import AttentionLayout

VarlenKernel = Callable[..., Tensor]


def flash_layout_attention(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout) -> Tensor:
    """Attention of [B, H, L, D] queries over [B, G, L, D] keys and values under `layout`, in fp16 or bf16 on a GPU.

    Raises:
        ImportError: flash-attn is not installed.
        ValueError: Tensors on a CPU, or in fp32.
    """
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attention 'flash' needs fp16 or bf16 tensors on a GPU; got {query.dtype} on {query.device}. Use "
            "precision bf16, or attention 'segmented', 'flex' or 'auto'."
        )
    from flash_attn import flash_attn_varlen_func

    return varlen_attention(query, key, value, layout, kernel=flash_attn_varlen_func)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, *, kernel: VarlenKernel
) -> Tensor:
    """The same with any kernel of `flash_attn_varlen_func`'s signature (causal aligned at the last query and key)."""
    plan = layout.derived("flash", query.device, lambda: _plan(layout, query.device))
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    outputs = [
        kernel(
            q.index_select(0, part.queries),
            k.index_select(0, part.keys),
            v.index_select(0, part.keys),
            part.query_bounds,
            part.key_bounds,
            part.longest_query,
            part.longest_key,
            causal=part.causal,
        )
        for part in plan.parts
    ]
    together = F.pad(torch.cat([q[:0], *outputs]), (0, 0, 0, 0, 0, 1))
    return together.index_select(0, plan.order).unflatten(0, (layout.batch, layout.length)).transpose(1, 2)


@dataclass(frozen=True)
class _Part:
    """Segments of one kernel call: positions in the flattened batch, and cumulative lengths (int32)."""

    queries: Tensor
    keys: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_key: int
    causal: bool


@dataclass(frozen=True)
class _Plan:
    """The calls, and where each position's output lies in them (padding: at the zeros behind)."""

    parts: tuple[_Part, ...]
    order: Tensor


def _plan(layout: AttentionLayout, device: torch.device) -> _Plan:
    causal: list[tuple[int, int, int]] = []
    blocks: list[tuple[int, int, int]] = []
    for number, row in enumerate(layout.rows):
        offset = number * layout.length
        for sample in row:
            previous = sample.image_start
            if sample.text:
                causal.append((offset + sample.start, offset + sample.start, offset + previous))
            for end in sample.scale_ends:
                blocks.append((offset + previous, offset + sample.start, offset + end))
                previous = end
            if sample.tail:
                causal.append((offset + previous, offset + sample.start, offset + sample.end))
    parts = [_part(spans, is_causal, device) for spans, is_causal in ((causal, True), (blocks, False)) if spans]
    total = layout.batch * layout.length
    queries = torch.cat([torch.zeros(0, dtype=torch.int64), *(part.queries.cpu() for part in parts)])
    order = torch.full((total,), len(queries))
    order[queries] = torch.arange(len(queries))
    return _Plan(tuple(parts), order.to(device))


def _part(spans: list[tuple[int, int, int]], causal: bool, device: torch.device) -> _Part:
    """A call for segments (first query, first key, end of both)."""
    query_lengths = [end - query for query, _, end in spans]
    key_lengths = [end - key for _, key, end in spans]
    return _Part(
        queries=torch.cat([torch.arange(query, end) for query, _, end in spans]).to(device),
        keys=torch.cat([torch.arange(key, end) for _, key, end in spans]).to(device),
        query_bounds=_bounds(query_lengths).to(device),
        key_bounds=_bounds(key_lengths).to(device),
        longest_query=max(query_lengths),
        longest_key=max(key_lengths),
        causal=causal,
    )


def _bounds(lengths: list[int]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)

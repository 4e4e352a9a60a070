"""Attention by torch's FlexAttention: one kernel that skips the blocks a layout hides. Compiled on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tokenflow.ops.attention_layout import AttentionLayout

_BLOCK = 128


def flex_layout_attention(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout) -> Tensor:
    """Attention of [B, H, L, D] queries over [B, G, L, D] keys and values under `layout`.

    Raises:
        ValueError: Gradients are wanted on a CPU, where FlexAttention has no backward.
    """
    on_cpu = query.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise ValueError(
            "attention 'flex' has no backward on a CPU; got CPU tensors that need gradients. Use 'segmented' or "
            "'auto', or wrap evaluation in torch.no_grad()."
        )
    mask = layout.derived("flex", query.device, lambda: block_mask(layout, query.device))
    attend = flex_attention if on_cpu else _compiled()
    return attend(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def block_mask(layout: AttentionLayout, device: torch.device) -> BlockMask:
    """The layout in blocks of 128 x 128, from its intervals alone: B x L x (L / 128) booleans at most."""
    begin, end = layout.intervals(device)
    blocks = -(-layout.length // _BLOCK)
    padding = (0, blocks * _BLOCK - layout.length)
    # Positions behind the row's end see nothing, so that the last block is never taken for a full one.
    begin_rows = F.pad(begin, padding).unflatten(1, (blocks, _BLOCK))[..., None]
    end_rows = F.pad(end, padding).unflatten(1, (blocks, _BLOCK))[..., None]
    first = torch.arange(blocks, device=device) * _BLOCK
    touched = ((begin_rows < first + _BLOCK) & (end_rows > first) & (end_rows > begin_rows)).any(2)
    full = ((begin_rows <= first) & (end_rows >= first + _BLOCK)).all(2)

    partial_counts, partial_indices = _listed(touched & ~full)
    full_counts, full_indices = _listed(full)
    return BlockMask.from_kv_blocks(
        partial_counts,
        partial_indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=_BLOCK,
        mask_mod=lambda b, h, q, k: (k >= begin[b, q]) & (k < end[b, q]),
        seq_lengths=(layout.length, layout.length),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen key blocks for each query block, and the blocks with the chosen ones first, in order."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]

"""One attention function for next-scale prediction, four backends, and the choice between them.

    dense      softmax over the whole row under a boolean L x L mask: the reference
    segmented  causal text, then one unmasked call a scale over its prefix: torch's fused kernels, on CPU and GPU
    flex       FlexAttention with a block mask: compiled on a GPU; on a CPU forward only, for checks
    flash      flash-attn's variable-length kernel, for fp16 and bf16 on a GPU (`pip install tokenflow[gpu]`)

Legend: B rows, H query heads, G key/value heads (G divides H), L positions, D head width.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tokenflow.ops.attention_layout import AttentionLayout
from tokenflow.ops.attention_segmented import segmented_attention

AttentionBackend = Literal["auto", "dense", "segmented", "flex", "flash"]


class ResolvedBackend(NamedTuple):
    """What `auto` (or an explicit choice) comes to, and why."""

    name: AttentionBackend
    """Never "auto"."""
    reason: str
    """One sentence for the log."""


def attention(
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B G L D"],
    value: Float[Tensor, "B G L D"],
    *,
    layout: AttentionLayout,
    backend: AttentionBackend = "auto",
) -> Float[Tensor, "B H L D"]:
    """Softmax attention, scaled by 1/sqrt(D), in which each position sees what `layout` says.

    Query head h reads key/value head h * G // H. Outputs at padding are finite and mean nothing: keep them out of
    losses. A loss of tokens sends padding no gradient.

    Raises:
        ValueError: Shapes that do not fit the layout, or a backend that is unknown, missing or unfit for the tensors.
    """
    rows, heads, length, _ = query.shape
    if (rows, length) != (layout.batch, layout.length) or heads % key.shape[1]:
        raise ValueError(
            f"query is {tuple(query.shape)} with {key.shape[1]} key/value heads; the layout has {layout.batch} rows of "
            f"{layout.length} positions and heads must be a multiple of key/value heads. Make a layout for this batch."
        )
    name = resolve_backend(backend, device=query.device, dtype=query.dtype).name
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad and name != "flex":
        # torch's fused backward pass in bf16 takes four times as long on a CPU as the one in fp32
        with torch.autocast("cpu", enabled=False):
            wide = attention(query.float(), key.float(), value.float(), layout=layout, backend=name)
        return wide.to(query.dtype)
    if name == "dense":
        return _dense_attention(query, key, value, layout)
    if name == "segmented":
        return segmented_attention(query, key, value, layout)
    if name == "flex":
        from tokenflow.ops.attention_flex import flex_layout_attention

        return flex_layout_attention(query, key, value, layout)
    from tokenflow.ops.attention_flash import flash_layout_attention

    return flash_layout_attention(query, key, value, layout)


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    mask = layout.derived("dense", query.device, lambda: layout.dense_mask(query.device))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def available_backends(device: torch.device | str) -> dict[AttentionBackend, str | None]:
    """For each backend None if it can run on `device`, else what is missing."""
    return dict(_available(torch.device(device).type == "cuda"))


@functools.cache
def _available(on_gpu: bool) -> dict[AttentionBackend, str | None]:
    flash = None if on_gpu else "it runs on NVIDIA GPUs only"
    if importlib.util.find_spec("flash_attn") is None:
        flash = "flash-attn is not installed (pip install tokenflow[gpu])"
    return {"dense": None, "segmented": None, "flex": _missing_for_flex(), "flash": flash}


def _missing_for_flex() -> str | None:
    try:
        from torch.nn.attention.flex_attention import BlockMask
    except ImportError:
        return f"torch {torch.__version__} has no FlexAttention (pip install 'torch>=2.7')"
    if "seq_lengths" not in inspect.signature(BlockMask.from_kv_blocks).parameters:
        return f"FlexAttention of torch {torch.__version__} takes no sequence lengths (pip install 'torch>=2.7')"
    return None


def resolve_backend(name: str, *, device: torch.device | str, dtype: torch.dtype = torch.float32) -> ResolvedBackend:
    """The backend that `name` stands for on this device. Only `auto` chooses; anything else is taken or refused.

    Raises:
        ValueError: An unknown name, or a backend that cannot run; the message lists what can, and what to install.
    """
    if name not in get_args(AttentionBackend):
        raise ValueError(f"attention is {name!r}; expected one of {', '.join(get_args(AttentionBackend))}.")
    missing = available_backends(device)
    if name != "auto":
        if missing[name] is not None:
            others = ", ".join(other for other, reason in missing.items() if reason is None)
            raise ValueError(f"attention {name!r} cannot run on {device}: {missing[name]}. Available: {others}, auto.")
        return ResolvedBackend(name, "chosen by name")
    half = dtype in (torch.float16, torch.bfloat16)
    if torch.device(device).type == "cuda" and half and missing["flash"] is None:
        return ResolvedBackend("flash", "flash-attn is installed and computes no padding")
    return ResolvedBackend("segmented", "fused kernels without a dense mask, the fastest in benchmarks/attention.py")

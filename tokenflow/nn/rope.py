"""Rotary positions with the conventions of transformers' Llama: channel c turns together with channel c + D/2.

Angles are fp32 and computed where they are needed, from the configuration alone: no buffer to be cast to bf16, or to be
left empty when a model is built on `meta`. Legend: B rows, L positions, H heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LINEAR = {"factor"}
_LLAMA3 = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}


def check_rope_scaling(scaling: Mapping[str, Any] | None) -> None:
    """Raise ValueError unless `scaling` is None, or {"rope_type": "linear" or "llama3"} with what that needs."""
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    if kind not in ("linear", "llama3"):
        raise ValueError(f"rope_scaling has rope_type {kind!r}; expected 'linear' or 'llama3', or no rope_scaling.")
    missing = sorted((_LINEAR if kind == "linear" else _LLAMA3) - set(scaling))
    if missing:
        raise ValueError(f"rope_scaling {dict(scaling)} lacks {', '.join(missing)}, which {kind!r} needs.")


def inverse_frequencies(
    width: int, *, theta: float, scaling: Mapping[str, Any] | None, device: torch.device | str
) -> Float[Tensor, "half"]:
    """Radians a position of each pair of channels, fp32, [D/2]."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device=device).float() / width
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    # Llama 3: short waves stay, long ones are stretched by the factor, those between are blended.
    original, low = scaling["original_max_position_embeddings"], scaling["low_freq_factor"]
    turns = original * frequencies / (2 * math.pi)
    blend = ((turns - low) / (scaling["high_freq_factor"] - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling["factor"] + blend * frequencies


def rotary_tables(
    positions: Int[Tensor, "B L *axes"], frequencies: Float[Tensor, "half"]
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """Cosine and sine of every position's angles, fp32, [B, L, D]; the two halves of D are equal.

    Positions of several axes take turns over the frequencies (Qwen3-VL's interleaved M-RoPE); where all axes of a
    position are equal, the angles are those of one axis.
    """
    if positions.ndim == 2:
        positions = positions[..., None]
    axis = torch.arange(len(frequencies), device=positions.device) % positions.shape[-1]
    angles = positions[..., axis].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "B L H D"], cosine: Float[Tensor, "B L D"], sine: Float[Tensor, "B L D"]
) -> Float[Tensor, "B L H D"]:
    """Turn queries or keys to their positions, in the dtype of `x`."""
    left, right = x.chunk(2, -1)
    turned = torch.cat([-right, left], -1)
    return x * cosine[:, :, None].to(x.dtype) + turned * sine[:, :, None].to(x.dtype)

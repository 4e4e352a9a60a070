"""Root-mean-square normalisation in fp32, by torch or by apex's fused kernel."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

NormBackend = Literal["auto", "torch", "apex"]


def rms_norm(
    x: Float[Tensor, "... C"], weight: Float[Tensor, "C"], *, epsilon: float, backend: NormBackend = "auto"
) -> Float[Tensor, "... C"]:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last axis, computed in fp32, in the dtype of `x`.

    `auto` is apex's fused kernel on a GPU where apex is installed, else torch.

    Raises:
        ValueError: `apex` was asked for and is not installed, or the tensors lie on a CPU.
    """
    if backend == "apex" and not _apex_runs(x):
        raise ValueError(
            f"norm 'apex' needs NVIDIA apex and a GPU; the tensor is on {x.device}, apex is "
            f"{'installed' if _has_apex() else 'missing (see github.com/NVIDIA/apex)'}. Use 'torch' or 'auto'."
        )
    if backend == "apex" or (backend == "auto" and _apex_runs(x)):
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        return fused_rms_norm_affine(x.float(), weight.float(), weight.shape, epsilon).to(x.dtype)
    return F.rms_norm(x.float(), weight.shape, weight.float(), epsilon).to(x.dtype)


def _has_apex() -> bool:
    return importlib.util.find_spec("apex") is not None


def _apex_runs(x: Tensor) -> bool:
    return x.device.type == "cuda" and _has_apex()

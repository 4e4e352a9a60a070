"""Weights laid out once for the CPU's matrix kernels: the same numbers, faster sampling in fp32.

Torch gives a matrix to its BLAS as it lies in memory, to be laid out anew at each call. oneDNN, which torch carries,
can keep that layout: benchmarks/generation.py measures what it gives.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokenflow.generation.head import Head
from tokenflow.generation.model import Generator
from tokenflow.language.transformer import FeedForward

Weights = Literal["auto", "packed", "plain"]
AUTO_BYTES = 2 * 2**30
"""`auto` packs up to this many bytes of matrices, as the packed ones stand beside the others while images are made."""


class PackedLinear(nn.Module):
    """A linear layer for inference on CPUs in fp32, with its weight in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self._bias = bias

    def forward(self, x: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape D"]:
        """x @ weight.T + bias."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class PackedFeedForward(nn.Module):
    """A feed-forward part that changes its inner activations, the largest of a step, where they lie."""

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Float[Tensor, "*shape W"]) -> Float[Tensor, "*shape W"]:
        """down(silu(gate(x)) * up(x))."""
        inner = F.silu(self.gate_proj(x), inplace=True)
        return self.down_proj(inner.mul_(self.up_proj(x)))


class PackedHead(nn.Module):
    """The image codes' rows of a head."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.weight = head.weight
        self._codes = PackedLinear(head.weight[head.first_code : head.first_code + head.codebook_size], None)

    def forward(self, hidden: Float[Tensor, "*shape W"]) -> Float[Tensor, "*shape K"]:
        """Logits of the image codes."""
        return self._codes(hidden)


def can_pack(generator: Generator) -> str | None:
    """None where a generator's weights can be packed, else the reason why not."""
    weight = generator.head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"weights are {weight.dtype} on {weight.device}; packing is for float32 on a CPU"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return "this torch has no oneDNN"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on, and packed matrices multiply float32 alone"
    return None


def for_sampling(generator: Generator, weights: Weights = "auto") -> Generator:
    """The generator itself, or an inference-only twin with packed matrices; everything else is shared.

    The twin knows nothing of later changes of the matrices: take one a call, it costs one copy of them. `auto` packs
    where that is possible and the matrices are small. ValueError for `packed` where it is not possible.
    """
    reason = can_pack(generator)
    if weights == "packed" and reason is not None:
        raise ValueError(f"weights='packed' cannot be had: {reason}. Use 'plain' or 'auto'.")
    size = sum(layer.weight.nbytes for layer in generator.modules() if isinstance(layer, nn.Linear | Head))
    if weights == "plain" or reason is not None or (weights == "auto" and size > AUTO_BYTES):
        return generator
    return _packed(generator)


def _packed(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return PackedLinear(module.weight, module.bias)
    if isinstance(module, Head):
        return PackedHead(module)
    if isinstance(module, FeedForward):
        return PackedFeedForward(*(_packed(part) for part in (module.gate_proj, module.up_proj, module.down_proj)))
    twin = copy.copy(module)
    # nn.Module assigns children through a dictionary of its own, which a copy shares.
    twin.__dict__["_modules"] = {name: None if m is None else _packed(m) for name, m in module._modules.items()}
    return twin

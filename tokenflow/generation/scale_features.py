"""The generator's inputs while an image grows: each scale's features from the codes so far (paper section 3.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tokenflow.tokenizer.quantizer import MultiScaleQuantizer


class GrowingFeatures:
    """What `MultiScaleQuantizer.scale_inputs` gives, one scale at a time and without starting again; fp32."""

    def __init__(self, quantizer: MultiScaleQuantizer, *, batch: int) -> None:
        self._quantizer = quantizer
        self._scale = 0
        codebook = quantizer.quantizer.codebooks[0]
        width = sum(quantizer.config.code_widths)
        self._map = torch.zeros(batch, width, 1, 1, device=codebook.device)

    def rows(self) -> Float[Tensor, "B n C"]:
        """Inputs of the current scale: what the coarser scales say."""
        return self._map.flatten(2).transpose(1, 2)

    def refined_rows(self, codes: Int[Tensor, "B n"]) -> Float[Tensor, "B n C"]:
        """Inputs of the current scale with a guess of its own codes added, for a refinement step."""
        return self._with(codes).flatten(2).transpose(1, 2)

    def advance(self, codes: Int[Tensor, "B n"]) -> None:
        """Fix the current scale's codes and go on to the next; the last one has none."""
        total = self._with(codes)
        self._scale += 1
        if self._scale < len(self._quantizer.scales):
            side = self._quantizer.scales[self._scale]
            self._map = F.interpolate(total, size=(side, side), mode="bicubic")

    def _with(self, codes: Tensor) -> Tensor:
        code = self._quantizer.quantizer.lookup(codes).transpose(1, 2)
        return self._map + code.unflatten(2, (math.isqrt(codes.shape[1]),) * 2)

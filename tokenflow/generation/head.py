"""The output head: a cross-entropy whose memory does not grow with tokens x vocabulary, and the codes' logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflow.generation.config import LossOver
from tokenflow.ops.cross_entropy import TokenLosses, chunked_cross_entropy


class Head(nn.Module):
    """Hidden states to logits, without bias.

    Everything that reads the weight is part of `forward`, so that ZeRO-3 gathers it.
    """

    def __init__(self, *, rows: int, width: int, first_code: int, codebook_size: int, loss_over: LossOver) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(rows, width))
        self.first_code = first_code
        """Row of code 0."""
        self.codebook_size = codebook_size
        self.loss_over: LossOver = loss_over

    def forward(
        self, hidden: Float[Tensor, "*shape W"], targets: Int[Tensor, "*shape"] | None = None
    ) -> TokenLosses | Float[Tensor, "*shape K"]:
        """With `targets`, rows of the head, their losses (flattened); without, the logits of the image codes, fp32.

        Losses of targets outside the rows that the softmax runs over are undefined: check codes before.
        """
        codes = slice(self.first_code, self.first_code + self.codebook_size)
        if targets is None:
            return F.linear(hidden, self.weight[codes]).float()
        rows = codes if self.loss_over == "codes" else slice(0, len(self.weight))
        return chunked_cross_entropy(hidden.flatten(0, -2), self.weight, targets.flatten(), rows=rows)

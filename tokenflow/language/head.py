"""The head of a language model: hidden states to logits, and losses of which the logits never lie whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflow.ops.cross_entropy import TokenLosses, chunked_cross_entropy


class LanguageHead(nn.Module):
    """`lm_head` without bias. Everything that reads the weight is part of `forward`, so that ZeRO-3 gathers it."""

    def __init__(self, *, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary_size, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights, as Llama's."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, hidden: Float[Tensor, "*shape W"], targets: Int[Tensor, "*shape"] | None = None
    ) -> TokenLosses | Float[Tensor, "*shape V"]:
        """With `targets`, token ids, their losses (flattened); without, the logits, fp32."""
        if targets is None:
            return F.linear(hidden, self.weight).float()
        return chunked_cross_entropy(hidden.flatten(0, -2), self.weight, targets.flatten())

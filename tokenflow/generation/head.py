"""The output head: a cross-entropy whose memory does not grow with tokens x vocabulary, and the codes' logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenflow.generation.config import LossOver

CHUNK_ELEMENTS = 2**24
"""Logits that live at once: 64 MiB in fp32."""


class TokenLosses(NamedTuple):
    """What the head says about each token; a tuple, because ZeRO-3's hooks find tensors in tuples."""

    losses: Float[Tensor, "tokens"]
    """Cross-entropy, fp32."""
    correct: Bool[Tensor, "tokens"]
    """Whether the target has the highest logit of those that the softmax runs over."""


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
        return TokenLosses(*_ChunkedCrossEntropy.apply(hidden.flatten(0, -2), self.weight, targets.flatten(), rows))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy over `weight[rows]` in blocks of tokens; logits are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.rows = rows
        ctx.save_for_backward(hidden, weight, targets)
        losses, correct = [], []
        with torch.autocast(device, enabled=False):
            matrix = weight[rows].to(ctx.dtype)
            for part, target in _chunks(hidden, targets - rows.start, matrix):
                logits = F.linear(part.to(ctx.dtype), matrix).float()  # fp32 from here on
                losses.append(F.cross_entropy(logits, target, reduction="none"))
                correct.append(logits.argmax(1) == target)
        result = torch.cat(losses), torch.cat(correct)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx, grad_losses: Tensor, _grad_correct: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Summed in fp32: a sum of bf16 blocks would depend on their number.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight[ctx.rows].to(ctx.dtype)
            start = 0
            for part, target in _chunks(hidden, targets - ctx.rows.start, matrix):
                block = slice(start, start + len(part))
                part = part.to(ctx.dtype)
                grad = torch.softmax(F.linear(part, matrix).float(), dim=1)
                grad[torch.arange(len(part), device=grad.device), target] -= 1
                grad = (grad * grad_losses[block, None]).to(ctx.dtype)
                grad_hidden[block] = grad @ matrix
                _add_matmul(grad_weight[ctx.rows], grad.T, part)
                start += len(part)
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _chunks(hidden: Tensor, targets: Tensor, matrix: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_ELEMENTS // len(matrix))
    return list(zip(hidden.split(size), targets.split(size), strict=True))


def _add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, with `total` in fp32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right

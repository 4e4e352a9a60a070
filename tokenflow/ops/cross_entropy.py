"""Cross-entropy of hidden states against a matrix of outputs, without logits of all tokens at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that live at once: 64 MiB in fp32."""


class TokenLosses(NamedTuple):
    """What is said about each token; a tuple, because ZeRO-3's hooks find tensors in tuples."""

    losses: Float[Tensor, "tokens"]
    """Cross-entropy, fp32."""
    correct: Bool[Tensor, "tokens"]
    """Whether the target has the highest logit of those that the softmax runs over."""


def chunked_cross_entropy(
    hidden: Float[Tensor, "tokens W"],
    weight: Float[Tensor, "V W"],
    targets: Int[Tensor, "tokens"],
    *,
    rows: slice | None = None,
) -> TokenLosses:
    """Losses of `targets`, rows of `weight`, over the logits `hidden @ weight[rows].T`; all rows by default.

    Computed in the weight's dtype (or autocast's), softmax in fp32. Losses of targets outside `rows` are undefined.
    """
    rows = slice(0, len(weight)) if rows is None else rows
    return TokenLosses(*_ChunkedCrossEntropy.apply(hidden, weight, targets, rows))


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

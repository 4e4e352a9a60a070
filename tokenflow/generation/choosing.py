"""From logits to codes: top-k, then top-p, then one draw a token (paper section 3.3, multi-step sampling)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SPARE = 16
"""Candidates beyond k that are fetched with it, to see whether the k-th has ties."""


class ImageStreams:
    """One stream of uniform numbers an image, a function of (seed, image index): a batch changes nothing."""

    def __init__(self, *, seed: int, indices: Iterable[int]) -> None:
        # On the CPU, whose generator gives the same numbers on every machine.
        self._generators = [torch.Generator().manual_seed(_mixed(seed, index)) for index in indices]

    def uniform(self, count: int, *, device: torch.device) -> Float[Tensor, "B count"]:
        """The next `count` numbers in [0, 1) of every image, float64."""
        numbers = [torch.rand(count, generator=generator, dtype=torch.float64) for generator in self._generators]
        return torch.stack(numbers).to(device)


def _mixed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"image {seed} {index}".encode()).digest()[:7], "little")


def choose(
    logits: Float[Tensor, "B n K"], *, top_k: int, top_p: float, uniform: Float[Tensor, "B n"] | None
) -> Int[Tensor, "B n"]:
    """One code a position; `uniform` may be None where `is_greedy(top_k, top_p)`.

    The `top_k` highest logits stay, ties with the last of them too; of these, the likeliest until their probabilities
    sum to more than `top_p`. fp32.
    """
    if is_greedy(top_k, top_p):
        return logits.argmax(-1)
    assert uniform is not None, "a draw needs random numbers"
    values, indices = _highest(logits.float(), top_k)
    probabilities = torch.softmax(values, dim=-1)
    cumulative = probabilities.double().cumsum(-1)
    # A code stays while those before it do not yet exceed top_p; the first always does.
    kept = (cumulative - probabilities <= top_p).sum(-1, keepdim=True)
    total = cumulative.gather(-1, kept - 1)
    place = torch.searchsorted(cumulative, uniform[..., None] * total, right=True)
    return indices.gather(-1, torch.minimum(place, kept - 1))[..., 0]


def is_greedy(top_k: int, top_p: float) -> bool:
    """Whether only the likeliest code can be chosen."""
    return top_k == 1 or top_p == 0


def _highest(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` highest logits in descending order, with those that tie with the last; the rest is -inf."""
    size = logits.shape[-1]
    if top_k >= size:
        return logits.sort(dim=-1, descending=True, stable=True)
    count = min(size, top_k + _SPARE)
    values, indices = top_values(logits, count)
    last = values[..., top_k - 1 : top_k]
    while count < size and bool((values[..., -1:] == last).any()):
        count = min(size, 2 * count)
        values, indices = top_values(logits, count)
    return values.masked_fill(values < last, -torch.inf), indices


def top_values(x: Float[Tensor, "*shape K"], count: int) -> tuple[Float[Tensor, "*shape k"], Int[Tensor, "*shape k"]]:
    """`x.topk(count)` in less time on CPUs: values in descending order and their places; ties may lie elsewhere.

    The highest values are in those blocks of x whose maxima are the highest: as many blocks as values hold them all.
    """
    size = x.shape[-1]
    # About sqrt(size / count), which keeps both searches short.
    block = 1 << ((size // count).bit_length() - 1) // 2
    if x.device.type != "cpu" or block == 1 or size % block:
        return x.topk(count, dim=-1)
    blocks = size // block
    # Block b is every `blocks`-th value from b on: maxima are then taken over long rows.
    parts = x.unflatten(-1, (block, blocks))
    chosen = parts.amax(-2).topk(count, dim=-1, sorted=False).indices
    index = chosen[..., None, :].expand(*chosen.shape[:-1], block, count)
    values, place = parts.gather(-1, index).flatten(-2).topk(count, dim=-1)
    return values, chosen.gather(-1, place % count) + place // count * blocks

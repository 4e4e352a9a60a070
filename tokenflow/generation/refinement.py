"""Training for the refinement steps of multi-step sampling (paper, section 3.3).

A refinement step feeds the features of the current scale back in with a guess of that scale's own codes added to them.
The paper's model never sees such inputs in training. Here some samples do: at one scale the input holds a guess, right
in part, and the model still predicts the right codes. With probability 0, training is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def with_guesses(
    features: Float[Tensor, "B rows C"],
    codes: Int[Tensor, "B L"],
    *,
    lookup: Callable[[Tensor], Tensor],
    scales: Sequence[int],
    codebook_size: int,
    probability: float,
    seeds: Sequence[int],
) -> Float[Tensor, "B rows C"]:
    """Features (`tokenizer.scale_inputs(codes)`) of which some samples hold a guess at one scale.

    Args:
        features: Rows of scales 2..n.
        codes: The right codes.
        lookup: Codes [...] to their vectors [..., C].
        scales: Sides of the scales.
        codebook_size: Codes to choose from.
        probability: Of a sample to hold a guess.
        seeds: One a sample; all draws of a sample depend on it alone.
    """
    if probability == 0 or len(scales) < 2:
        return features
    ends = [0]
    for scale in scales:
        ends.append(ends[-1] + scale**2)
    changed = features.clone()
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        if torch.rand((), generator=generator) >= probability:
            continue
        index = int(torch.randint(1, len(scales), (), generator=generator))
        place = slice(ends[index], ends[index + 1])
        guess = corrupted(codes[row, place], codebook_size=codebook_size, generator=generator)
        # Features begin with the second scale's rows.
        rows = slice(place.start - ends[1], place.stop - ends[1])
        changed[row, rows] += lookup(guess).to(changed.dtype)
    return changed


def corrupted(codes: Int[Tensor, "n"], *, codebook_size: int, generator: torch.Generator) -> Int[Tensor, "n"]:
    """Codes of one scale, a random share of them wrong: half of those are from the scale itself, half from anywhere."""
    count = len(codes)
    rate = torch.rand((), generator=generator)
    wrong = (torch.rand(count, generator=generator) < rate).to(codes.device)
    nearby = (torch.rand(count, generator=generator) < 0.5).to(codes.device)
    shuffled = codes[torch.randperm(count, generator=generator).to(codes.device)]
    anywhere = torch.randint(codebook_size, (count,), generator=generator).to(codes.device)
    return torch.where(wrong, torch.where(nearby, shuffled, anywhere), codes)

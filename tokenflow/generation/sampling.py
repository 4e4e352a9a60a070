"""Codes scale by scale, with guidance and refinement steps (paper section 3.3).

Legend: B images, R rows of the transformer (B, or 2B with guidance: conditional first), n codes of a scale, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflow.generation.choosing import ImageStreams, choose, is_greedy
from tokenflow.generation.model import Generator
from tokenflow.generation.options import SamplingConfig
from tokenflow.generation.scale_features import GrowingFeatures
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer

Keep = Literal["append", "refine"]


class SamplingProgress(NamedTuple):
    """Where sampling stands after a step."""

    scale: int
    """Position of the scale, from 0."""
    step: int
    """Step at the scale, from 0; later ones refine."""
    codes: Int[Tensor, "B L"]
    """Codes so far: whole scales."""
    logits: Float[Tensor, "B n K"]
    """Guided logits of the scale."""


@runtime_checkable
class Predictor(Protocol):
    """Hidden states of one scale after another, for all rows."""

    def first(self) -> Float[Tensor, "R 1 W"]:
        """At the last text token, which predicts the first scale."""

    def scale(self, index: int, features: Float[Tensor, "B n C"], *, keep: Keep) -> Float[Tensor, "R n W"]:
        """At scale `index` (from 1) with these inputs; `refine` stands in for the last ones and leaves no trace."""


@torch.no_grad()
def sample_codes(
    predictor: Predictor,
    *,
    generator: Generator,
    quantizer: MultiScaleQuantizer,
    config: SamplingConfig,
    streams: ImageStreams,
    batch: int,
    num_scales: int | None = None,
    progress: Callable[[SamplingProgress], None] | None = None,
    forced: Callable[[int, int], Tensor] | None = None,
) -> Int[Tensor, "B L"]:
    """Codes of `batch` images, or of their first `num_scales` scales.

    `progress` is called after every step. `forced(scale, step)` gives codes to go on with in place of the chosen ones,
    to compare with a known course.
    """
    config.check(codebook_size=generator.config.codebook_size)
    growing = GrowingFeatures(quantizer, batch=batch)
    strengths = config.strengths(len(generator.config.scales))
    chosen: list[Tensor] = []
    for scale in range(len(strengths) if num_scales is None else num_scales):
        codes = None
        for step, (top_k, top_p) in enumerate(zip(config.top_k, config.top_p, strict=True)):
            if scale == 0:
                if step:
                    break  # refinement begins with the second scale
                hidden = predictor.first()
            elif step == 0:
                hidden = predictor.scale(scale, growing.rows(), keep="append")
            else:
                hidden = predictor.scale(scale, growing.refined_rows(codes), keep="refine")
            logits = generator.head(guided(hidden, batch=batch, strength=strengths[scale]))
            uniform = None if is_greedy(top_k, top_p) else streams.uniform(logits.shape[1], device=logits.device)
            codes = choose(logits, top_k=top_k, top_p=top_p, uniform=uniform)
            if progress is not None:
                progress(SamplingProgress(scale, step, torch.cat([*chosen, codes], dim=1), logits))
            if forced is not None:
                codes = forced(scale, step)
        growing.advance(codes)
        chosen.append(codes)
    return torch.cat(chosen, dim=1)


def guided(hidden: Float[Tensor, "R n W"], *, batch: int, strength: float) -> Float[Tensor, "B n W"]:
    """Hidden states whose logits are (1 + t) * conditional - t * unconditional.

    The head is linear, so that the rows are combined before it: half the vocabulary product. fp32 where t is not 0.
    """
    if strength == 0 or len(hidden) == batch:
        return hidden[:batch]
    conditional, unconditional = hidden.float().split(batch)
    return (conditional + strength * (conditional - unconditional)).to(hidden.dtype)

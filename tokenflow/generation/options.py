"""How codes are sampled: guidance over the scales, and top-k and top-p of every step at a scale."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "constant"]
Steps = Literal["greedy", "single-step", "two-step", "three-step"]
STEPS: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "greedy": ((1,), (0.0,)),
    "single-step": ((600,), (0.6,)),
    "two-step": ((1200, 1), (0.8, 0.0)),
    "three-step": ((1200, 100, 1), (0.8, 0.8, 0.0)),
}
"""Top-k and top-p of each step at a scale (paper section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Guidance and the multi-step sampling of one image."""

    guidance_scale: float = 7.5
    """Strength of classifier-free guidance; 0 leaves it out."""
    guidance: Schedule | tuple[float, ...] = "linear"
    """`linear`: from 0 at the first scale to `guidance_scale` at the last (paper); `constant`; or a strength for
    every scale, which `guidance_scale` then multiplies."""
    top_k: tuple[int, ...] = STEPS["three-step"][0]
    """Codes that stay at each step; steps after the first refine the scale, from the second scale on."""
    top_p: tuple[float, ...] = STEPS["three-step"][1]
    """Probability mass that stays at each step; 0 takes the likeliest code, 1 leaves it out."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; expected 0 (no guidance) or more, e.g. 7.5.")
        if isinstance(self.guidance, str) and self.guidance not in ("linear", "constant"):
            raise ValueError(f"guidance is {self.guidance!r}; expected linear, constant or one number a scale.")
        if not isinstance(self.guidance, str) and any(not 0 <= t < float("inf") for t in self.guidance):
            raise ValueError(f"guidance is {self.guidance}; expected numbers from 0 on.")
        if not self.top_k or len(self.top_k) != len(self.top_p):
            raise ValueError(f"top_k is {self.top_k} and top_p {self.top_p}; expected one of each for every step.")
        if any(k != int(k) or k < 1 for k in self.top_k):
            raise ValueError(f"top_k is {self.top_k}; expected whole numbers from 1 on (the codebook's size for all).")
        if any(not 0 <= p <= 1 for p in self.top_p):
            raise ValueError(f"top_p is {self.top_p}; expected 0 to 1.")

    @classmethod
    def named(cls, steps: str, *, codebook_size: int, **fields: object) -> SamplingConfig:
        """A preset of the paper; its top-k is cut to a smaller codebook."""
        if steps not in STEPS:
            raise ValueError(f"unknown steps {steps!r}; expected one of {', '.join(STEPS)}, or pass top_k and top_p.")
        top_k, top_p = STEPS[steps]
        return cls(top_k=tuple(min(k, codebook_size) for k in top_k), top_p=top_p, **fields)

    def strengths(self, num_scales: int) -> tuple[float, ...]:
        """Guidance t of every scale: logits are (1 + t) * conditional - t * unconditional."""
        if self.guidance == "constant":
            return (self.guidance_scale,) * num_scales
        if self.guidance == "linear":
            return tuple(self.guidance_scale * i / max(1, num_scales - 1) for i in range(num_scales))
        if len(self.guidance) != num_scales:
            raise ValueError(
                f"guidance has {len(self.guidance)} numbers; expected one for each of {num_scales} scales."
            )
        return tuple(self.guidance_scale * t for t in self.guidance)

    def check(self, *, codebook_size: int) -> None:
        """ValueError for a top-k above the codebook's size."""
        if max(self.top_k) > codebook_size:
            raise ValueError(
                f"top_k is {self.top_k}; the codebook has {codebook_size} codes. Use at most {codebook_size}."
            )

    def with_scale(self, guidance_scale: float) -> SamplingConfig:
        """The same sampling at another strength."""
        return dataclasses.replace(self, guidance_scale=guidance_scale)

"""What every evaluation of text-to-image shares: the painter it asks, how it samples, and pictures as uint8."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.reconstruction import reconstruct_uint8
from tokenflow.generation.options import SamplingConfig, Schedule, Steps


class Painter(Protocol):
    """What is evaluated: `tokenflow.TextToImage`, or anything that paints."""

    def generate(self, prompts: Sequence[str], **options: Any) -> Tensor:
        """Pictures float [B, 3, S, S] in [-1, 1]; options are those of `Sampling.options`, and `first_image`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled (paper section 3.3)."""

    steps: Steps = "three-step"
    """`greedy`, or the paper's sampling in one, two or three steps a scale."""
    guidance_scale: float = 7.5
    """Strength of classifier-free guidance; 0 leaves it out."""
    guidance: Schedule = "linear"
    """`linear` rises over the scales to `guidance_scale` (paper); `constant` does not."""
    negative_prompt: str = ""
    """What guidance leads away from; empty is what training with dropped captions learned."""
    seed: int = 0
    """With an image's index it decides its random numbers, whatever the batch."""

    def __post_init__(self) -> None:
        """Check the values as the sampler would, before any model is loaded."""
        SamplingConfig.named(self.steps, codebook_size=1, guidance_scale=self.guidance_scale, guidance=self.guidance)

    def options(self) -> dict[str, Any]:
        """As keywords of `Painter.generate`."""
        return asdict(self)


def paint(painter: Painter, prompts: Sequence[str], sampling: Sampling, *, first_image: int) -> Picture:
    """Pictures uint8 [n, S, S, 3] of prompts; `first_image` is the index of the first one's random numbers."""
    images = painter.generate(list(prompts), **sampling.options(), first_image=first_image)
    if images.ndim != 4 or len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts gave images {tuple(images.shape)}; expected one picture a prompt")
    return reconstruct_uint8(images).permute(0, 2, 3, 1).cpu().numpy()


def read_picture(path: str | Path) -> Picture:
    """A picture file as uint8 [H, W, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def sheet(pictures: Sequence[Picture], *, columns: int) -> Picture:
    """Equally large pictures [H, W, 3] in rows of `columns`, without gaps, enlarged by nothing; black where none is."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = picture
    return canvas

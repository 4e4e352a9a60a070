"""Pictures that are none: not finite, of one colour, or all alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PictureFault(NamedTuple):
    """What is wrong with a model's pictures."""

    what: str
    likely: str
    """Causes, the likelier ones first."""


def fault_of_pictures(images: Float[Tensor, "B 3 H W"], *, tolerance: float = 0.02) -> PictureFault | None:
    """What is wrong with pictures that are constant or all alike; None when they look like pictures.

    Args:
        images: In [-1, 1], of different originals.
        tolerance: Standard deviation below which a picture counts as constant.
    """
    values = images.detach().float()
    if not torch.isfinite(values).all():
        return PictureFault(
            "the pictures hold NaN or infinity",
            "too high a learning rate, a loss computed in bf16, or weights that are broken or were never loaded",
        )
    within = values.flatten(2).std(dim=2).amax(dim=1)
    if (within < tolerance).all():
        level = values.mean().item()
        kind = "black" if level < -0.9 else "white" if level > 0.9 else "grey" if _is_grey(values) else "of one colour"
        return PictureFault(
            f"every picture is constant ({kind}, mean {level:.2f})",
            "the codebook collapsed (look at usage), the adversarial loss came in too early or too strong, the "
            "learning rate is too high, the decoder's output is clipped, or its weights were never loaded",
        )
    if values.shape[0] > 1 and (values - values.mean(dim=0)).abs().max() < tolerance:
        return PictureFault(
            "all pictures are the same, whatever goes in",
            "the codebook collapsed to a few codes (look at usage), or the decoder ignores its input",
        )
    return None


def constant_image_alarm(images: Float[Tensor, "B 3 H W"]) -> str | None:
    """`fault_of_pictures` as one message."""
    fault = fault_of_pictures(images)
    return None if fault is None else f"{fault.what}. Likely causes: {fault.likely}."


def _is_grey(values: Tensor) -> bool:
    channels = values.mean(dim=(0, 2, 3))
    return bool((channels.max() - channels.min()) < 0.1)

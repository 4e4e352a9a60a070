"""What a language model sees of an image: features of its codes (Table 8), or a teacher's (Table 9)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher
from tokenflow.understanding.config import Features

Tower = TokenFlowTokenizer | Teacher


@torch.no_grad()
def image_features(
    tower: Tower, images: Float[Tensor, "I 3 S S"] | Int[Tensor, "I L"], features: Features = "last_scale"
) -> Float[Tensor, "I N C"]:
    """Features of images in [-1, 1], or of the codes of images, fp32, without gradients.

    Raises:
        ValueError: A teacher's features of a tokenizer, or codes of a teacher.
    """
    if (features == "teacher") != isinstance(tower, Teacher):
        raise ValueError(f"features are {features!r} and the tower is a {type(tower).__name__}. Pass the other kind.")
    if isinstance(tower, Teacher):
        return tower(images)
    return tower.features(tower.encode(images) if images.is_floating_point() else images, features)

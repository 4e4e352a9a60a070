"""Features to embeddings: LLaVA's projectors (paper, section 3.4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokenflow.language.transformer import Projection
from tokenflow.understanding.config import projector_layers


def build_projector(name: str, *, feature_width: int, width: int, deviation: float) -> nn.Sequential:
    """`linear`, or `mlpNx_gelu`: N linear layers with an exact GELU between them.

    Args:
        name: Kind.
        feature_width: Channels in.
        width: Channels of the language model, and of the hidden layers.
        deviation: Of the language model's embeddings; what comes out begins about as strong.
    """
    count = projector_layers(name)
    layers: list[nn.Module] = []
    inputs = feature_width
    for number in range(count):
        if number:
            layers.append(nn.GELU())
        last = number == count - 1
        # GELU lets about two thirds of a normal input's size through.
        layers.append(Projection(inputs, width, bias=True, deviation=(1.5 * deviation if last else 1.0) * inputs**-0.5))
        inputs = width
    return nn.Sequential(*layers)


def merged(features: Float[Tensor, "I N C"], merge: int) -> Float[Tensor, "I n c"]:
    """Features of a square grid, row-major, `merge` x `merge` neighbours side by side: [I, N / merge^2, C merge^2]."""
    if merge == 1:
        return features
    side = math.isqrt(features.shape[1]) // merge
    blocks = features.unflatten(1, (side, merge, side, merge)).permute(0, 1, 3, 2, 4, 5)
    return blocks.flatten(3).flatten(1, 2)


def surrounded(features: Float[Tensor, "I N C"], size: int) -> Float[Tensor, "I N c"]:
    """Each feature of a square grid, row-major, with the `size` x `size` around it: [I, N, C size^2], zeros outside."""
    if size == 1:
        return features
    side = math.isqrt(features.shape[1])
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    return F.unfold(grid, size, padding=size // 2).transpose(1, 2)


def whitening(features: Float[Tensor, "rows C"], *, floor: float = 1e-3) -> tuple[Float[Tensor, "C C"], Tensor]:
    """(weight [C, C], bias [C]) of the linear layer that makes channels uncorrelated and of variance one: ZCA.

    Args:
        features: At least two, of many places and pictures.
        floor: Share of the mean variance that is added to every direction's, so that noise is not made loud.

    Raises:
        ValueError: Too few features, or all of them equal.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} features cannot be whitened; expected many, of several pictures.")
    rows = features.double()
    mean = rows.mean(dim=0)
    values, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / (len(rows) - 1))
    least = floor * values.clamp(min=0).mean()
    if not least > 0:
        raise ValueError(f"all {len(features)} features are equal: nothing to whiten. Look at the pictures.")
    weight = directions @ torch.diag((values.clamp(min=0) + least).rsqrt()) @ directions.T
    return weight.float(), -(weight @ mean).float()


def grid_coordinates(
    image_tokens: int, count: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "N channels"]:
    """Sines and cosines of the places of a square grid, row-major: [N, 4 * count] in fp32.

    The waves of each axis go from twice the image's side down to two cells, so that neighbours are alike and no two
    places are equal.
    """
    side = math.isqrt(image_tokens)
    centres = (torch.arange(side, device=device) + 0.5) / side
    frequencies = math.pi * float(side) ** (torch.arange(count, device=device) / max(1, count - 1))
    waves = centres[:, None] * frequencies
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows = axis[:, None].expand(side, side, -1)
    return torch.cat([rows.transpose(0, 1), rows], dim=-1).flatten(0, 1)

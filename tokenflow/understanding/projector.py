"""Features to embeddings: LLaVA's projectors (paper, section 3.4)."""

from __future__ import annotations

from torch import nn

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

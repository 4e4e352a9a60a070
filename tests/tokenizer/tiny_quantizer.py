"""A small quantizer, and gradients of what it returns."""

import torch

from tokenflow.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig


def make(codebook_size=64, widths=(6, 4), scales=(1, 2, 4), **options):
    weights = options.pop("distance_weights", (1.0,) * len(widths))
    config = QuantizerConfig(
        codebook_size=codebook_size, code_widths=widths, distance_weights=weights, scales=scales, **options
    )
    return MultiScaleQuantizer(config)


def gradients(loss, *of):
    return torch.autograd.grad(loss, of, retain_graph=True)

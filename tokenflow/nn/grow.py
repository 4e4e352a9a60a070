"""A convolutional decoder made larger without changing what it computes (paper, appendix B.1, "2x" decoder).

The paper doubles residual blocks and channels and trains the larger decoder. Started from random weights, it first has
to learn again what the smaller one knew. Here the larger one starts as the same function (Net2Net, arXiv:1511.05641):
every channel is repeated, its outgoing weights are divided between the copies, unevenly so that they can part, and
additional residual blocks begin as the identity.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from tokenflow.nn.conv_resnet import ConvDecoder, ConvResnetConfig, Level, Middle, ResidualBlock, SpatialAttention


def enlarged(config: ConvResnetConfig, *, channel_factor: int = 2, block_factor: int = 2) -> ConvResnetConfig:
    """The sizes of a decoder with so many times the channels and residual blocks; 1 and 1: the same.

    Raises:
        ValueError: A factor below 1.
    """
    for name, factor in (("channel_factor", channel_factor), ("block_factor", block_factor)):
        if factor < 1:
            raise ValueError(f"{name} is {factor}; expected at least 1 (1 keeps the size, the paper doubles it).")
    return dataclasses.replace(config, channels=config.channels * channel_factor, blocks=config.blocks * block_factor)


@torch.no_grad()
def grow_decoder(
    smaller: ConvDecoder, larger: ConvDecoder, *, channel_factor: int, generator: torch.Generator | None = None
) -> ConvDecoder:
    """Fill `larger`, whose sizes come from `enlarged`, so that it computes what `smaller` does; returns it.

    Args:
        smaller: The trained decoder; left as it is.
        larger: The decoder to fill.
        channel_factor: Copies of each channel.
        generator: Draws the shares in which copies divide their outgoing weights.
    """
    grow = _Growth(channel_factor, generator)
    grow.convolution(smaller.conv_in, larger.conv_in, inputs=False)
    grow.middle(smaller.middle, larger.middle)
    for small, large in zip(smaller.levels, larger.levels, strict=True):
        grow.level(small, large)
    grow.norm(smaller.norm_out, larger.norm_out)
    grow.convolution(smaller.conv_out, larger.conv_out, outputs=False)
    return larger


class _Growth:
    """One growth: the factor, and where the uneven shares come from."""

    def __init__(self, factor: int, generator: torch.Generator | None) -> None:
        self.factor = factor
        self.generator = generator

    def middle(self, small: Middle, large: Middle) -> None:
        self.block(small.before, large.before)
        if isinstance(small.attention, SpatialAttention):
            self.attention(small.attention, large.attention)
        self.block(small.after, large.after)

    def level(self, small: Level, large: Level) -> None:
        known = len(small.blocks)
        for index, (block, attention) in enumerate(zip(large.blocks, large.attentions, strict=True)):
            if index < known:
                self.block(small.blocks[index], block)
            else:
                _silence(block.conv2)
            if not isinstance(attention, SpatialAttention):
                continue
            if index < known:
                self.attention(small.attentions[index], attention)
            else:
                _silence(attention.output)
        if not isinstance(small.resize, nn.Identity):
            self.convolution(small.resize.conv, large.resize.conv)

    def block(self, small: ResidualBlock, large: ResidualBlock) -> None:
        self.norm(small.norm1, large.norm1)
        self.convolution(small.conv1, large.conv1)
        self.norm(small.norm2, large.norm2)
        self.convolution(small.conv2, large.conv2)
        if isinstance(small.shortcut, nn.Conv2d):
            self.convolution(small.shortcut, large.shortcut)

    def attention(self, small: SpatialAttention, large: SpatialAttention) -> None:
        self.norm(small.norm, large.norm)
        for name in ("query", "key", "value", "output"):
            self.convolution(getattr(small, name), getattr(large, name))
        # A head of f times the channels has f times the products, but is divided by sqrt(f) only.
        for tensor in (large.query.weight, large.query.bias):
            tensor.mul_(1 / math.sqrt(self.factor))

    def norm(self, small: nn.GroupNorm, large: nn.GroupNorm) -> None:
        # Copies lie side by side, so a group holds copies of just the channels that it held: same mean, same variance.
        large.weight.copy_(self._repeated(small.weight))
        large.bias.copy_(self._repeated(small.bias))

    def convolution(self, small: nn.Conv2d, large: nn.Conv2d, *, inputs: bool = True, outputs: bool = True) -> None:
        weight, bias = small.weight, small.bias
        if outputs:
            weight, bias = self._repeated(weight), self._repeated(bias)
        if inputs:
            weight = weight.repeat_interleave(self.factor, dim=1) * self._shares(len(weight), weight.shape[1])
        large.weight.copy_(weight)
        large.bias.copy_(bias)

    def _repeated(self, tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(self.factor, dim=0)

    def _shares(self, outputs: int, channels: int) -> Tensor:
        """[outputs, channels x factor, 1, 1]: what each copy of an input carries; 1 in sum over the copies."""
        drawn = 0.5 + torch.rand(outputs, channels, self.factor, generator=self.generator)
        return (drawn / drawn.sum(-1, keepdim=True)).reshape(outputs, channels * self.factor, 1, 1)


def _silence(convolution: nn.Conv2d) -> None:
    """Zero the last convolution of a residual branch: the block is then the identity, and still learns."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)

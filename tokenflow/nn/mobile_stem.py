"""ViTamin's convolutional stem: a strided stem and two stages of inverted bottlenecks (ViTamin, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MobileStemConfig:
    """Sizes of the stem. It reduces the image sixteenfold."""

    channels: tuple[int, int, int] = (192, 384, 1152)
    """Channels of the first stage (and the strided stem), of the second stage, and of the tokens."""
    blocks: tuple[int, int] = (2, 4)
    """Inverted bottlenecks in either stage; the first of each has stride 2."""
    expansion: int = 4
    """Hidden over output channels of a bottleneck."""
    norm_epsilon: float = 1e-6
    """Epsilon of the channel norms."""

    @property
    def out_channels(self) -> int:
        """Channels of the tokens."""
        return self.channels[-1]

    @property
    def reduction(self) -> int:
        """Pixels a token covers on each side."""
        return 16


class MobileStem(nn.Module):
    """Image to a token map at a sixteenth of its side."""

    def __init__(self, config: MobileStemConfig) -> None:
        super().__init__()
        first, second, last = config.channels
        self.stem_in = nn.Conv2d(3, first, 3, stride=2, padding=1)
        self.stem_norm = ChannelNorm(first, epsilon=config.norm_epsilon)
        self.stem_out = nn.Conv2d(first, first, 3, padding=1)
        blocks: list[nn.Module] = []
        channels = first
        for stage_channels, num_blocks in zip((first, second), config.blocks, strict=True):
            for index in range(num_blocks):
                stride = 2 if index == 0 else 1
                blocks.append(InvertedBottleneck(channels, stage_channels, stride=stride, config=config))
                channels = stage_channels
        self.blocks = nn.ModuleList(blocks)
        self.pool_norm = ChannelNorm(second, epsilon=config.norm_epsilon)
        self.pool = nn.Conv2d(second, last, 3, stride=2, padding=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images [B, 3, H, W] to tokens [B, C, H/16, W/16]."""
        x = self.stem_out(F.gelu(self.stem_norm(self.stem_in(images))))
        for block in self.blocks:
            x = block(x)
        return self.pool(self.pool_norm(x))


class InvertedBottleneck(nn.Module):
    """Channel norm, 1x1 expand, depthwise 3x3, 1x1 contract; the residual is pooled and widened where shapes change."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, config: MobileStemConfig) -> None:
        super().__init__()
        hidden = out_channels * config.expansion
        self.stride = stride
        widens = in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if widens else nn.Identity()
        self.norm = ChannelNorm(in_channels, epsilon=config.norm_epsilon)
        self.expand = nn.Conv2d(in_channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.contract = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to [B, C', h/stride, w/stride]."""
        pooled = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False) if self.stride == 2 else x
        hidden = F.gelu(self.depthwise(F.gelu(self.expand(self.norm(x)))))
        return self.contract(hidden) + self.shortcut(pooled)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a feature map."""

    def __init__(self, channels: int, *, epsilon: float) -> None:
        super().__init__(channels, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to the same shape."""
        x = super().forward(rearrange(x, "b c h w -> b h w c"))
        return rearrange(x, "b h w c -> b c h w")

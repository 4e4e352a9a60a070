"""Convolutional encoder and decoder of the pixel branch (the VQGAN architecture; paper, section 3.2).

Sizes are numbers of the configuration: the paper's, the doubled decoder of appendix B.1, and the small one of the
built-in world, which folds pixels into channels first so that two CPU cores can train it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ConvResnetConfig:
    """Sizes of one side (encoder or decoder)."""

    channels: int = 128
    """Channels at the highest resolution."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels over `channels`, from the highest to the lowest resolution; each further level halves the side."""
    blocks: int = 2
    """Residual blocks a level (a decoder has one more, as in the paper's architecture)."""
    latent_channels: int = 256
    """Channels at the inner end."""
    attention: bool = True
    """Attention after every residual block of the lowest level and in the middle."""
    norm_groups: int = 32
    """Groups of the group norms; they divide every channel count."""
    fold: int = 1
    """Pixels folded into channels on each side before the first (after the last) convolution; 1: none."""

    def __post_init__(self) -> None:
        for multiplier in self.multipliers:
            if (self.channels * multiplier) % self.norm_groups:
                raise ValueError(
                    f"channels x multiplier must be a multiple of norm_groups ({self.norm_groups}); got "
                    f"{self.channels} x {multiplier}. Lower norm_groups or change channels."
                )

    @property
    def reduction(self) -> int:
        """Image side over latent side."""
        return self.fold * 2 ** (len(self.multipliers) - 1)


class ConvEncoder(nn.Module):
    """Images to a latent map."""

    def __init__(self, config: ConvResnetConfig) -> None:
        super().__init__()
        self.fold = config.fold
        self.conv_in = nn.Conv2d(3 * config.fold**2, config.channels, 3, padding=1)
        levels = []
        channels = config.channels
        for index, multiplier in enumerate(config.multipliers):
            lowest = index == len(config.multipliers) - 1
            level_channels = config.channels * multiplier
            levels.append(
                Level(
                    channels,
                    level_channels,
                    blocks=config.blocks,
                    attention=config.attention and lowest,
                    resize=nn.Identity() if lowest else Downsample(level_channels),
                    norm_groups=config.norm_groups,
                )
            )
            channels = level_channels
        self.levels = nn.ModuleList(levels)
        self.middle = Middle(channels, attention=config.attention, norm_groups=config.norm_groups)
        self.norm_out = group_norm(channels, norm_groups=config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B latent h w"]:
        """Images [B, 3, H, W] in [-1, 1] to a latent map at side H / reduction."""
        x = self.conv_in(F.pixel_unshuffle(images, self.fold) if self.fold > 1 else images)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class ConvDecoder(nn.Module):
    """Latent map to images; levels are listed from the lowest to the highest resolution."""

    def __init__(self, config: ConvResnetConfig) -> None:
        super().__init__()
        self.fold = config.fold
        channels = config.channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = Middle(channels, attention=config.attention, norm_groups=config.norm_groups)
        levels = []
        for index, multiplier in enumerate(reversed(config.multipliers)):
            highest = index == len(config.multipliers) - 1
            level_channels = config.channels * multiplier
            levels.append(
                Level(
                    channels,
                    level_channels,
                    blocks=config.blocks + 1,
                    attention=config.attention and index == 0,
                    resize=nn.Identity() if highest else Upsample(level_channels),
                    norm_groups=config.norm_groups,
                )
            )
            channels = level_channels
        self.levels = nn.ModuleList(levels)
        self.norm_out = group_norm(channels, norm_groups=config.norm_groups)
        self.conv_out = nn.Conv2d(channels, 3 * config.fold**2, 3, padding=1)

    def forward(self, latents: Float[Tensor, "B latent h w"]) -> Float[Tensor, "B 3 H W"]:
        """Latent map to images of side h * reduction, about [-1, 1], not clamped."""
        x = self.middle(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.fold) if self.fold > 1 else x


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked, then a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        blocks: int,
        attention: bool,
        resize: nn.Module,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if index == 0 else out_channels, out_channels, norm_groups=norm_groups)
            for index in range(blocks)
        )
        self.attentions = nn.ModuleList(
            SpatialAttention(out_channels, norm_groups=norm_groups) if attention else nn.Identity()
            for _ in range(blocks)
        )
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to [B, C', h', w']."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resize(x)


class Middle(nn.Module):
    """Residual block, attention (where asked), residual block, at the lowest resolution."""

    def __init__(self, channels: int, *, attention: bool, norm_groups: int) -> None:
        super().__init__()
        self.before = ResidualBlock(channels, channels, norm_groups=norm_groups)
        self.attention = SpatialAttention(channels, norm_groups=norm_groups) if attention else nn.Identity()
        self.after = ResidualBlock(channels, channels, norm_groups=norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map to the same shape."""
        return self.after(self.attention(self.before(x)))


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, with a 1x1 shortcut where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups=norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, norm_groups=norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to [B, C', h, w]."""
        residual = self.conv1(F.silu(self.norm1(x)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.shortcut(x) + residual


class SpatialAttention(nn.Module):
    """Single-head attention over all cells of a feature map."""

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups=norm_groups)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to the same shape."""
        height = x.shape[-2]
        normed = self.norm(x)
        query, key, value = (
            rearrange(project(normed), "b c h w -> b 1 (h w) c") for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(rearrange(mixed, "b 1 (h w) c -> b c h w", h=height))


class Downsample(nn.Module):
    """Stride-2 convolution, padded on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to [B, C, h/2, w/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [B, C, h, w] to [B, C, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int, *, norm_groups: int) -> nn.GroupNorm:
    """The group norm of every block; epsilon 1e-6 as in the paper's architecture."""
    return nn.GroupNorm(norm_groups, channels, eps=1e-6)

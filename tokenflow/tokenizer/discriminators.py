"""Discriminators of the adversarial loss: PatchGAN (Isola et al. 2017) and StyleGAN2's (Karras et al. 2020)."""

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches: strided 4x4 convolutions with batch norm, one logit a patch."""

    def __init__(self, *, channels: int = 64, layers: int = 3) -> None:
        """Make the network.

        Args:
            channels: width after the first convolution; it doubles a layer, to eight times at most.
            layers: number of stride-2 convolutions. A logit sees 70 x 70 pixels with three.
        """
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"channels is {channels}, layers {layers}; expected both at least 1.")
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            # No bias: the batch norm that follows has one.
            blocks += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """Return one logit a patch, positive for real, of images [B, 3, H, W] in [-1, 1]."""
        return self.main(images)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class StyleDiscriminator(nn.Module):
    """Judges whole images: residual blocks that halve the picture, minibatch deviation, two dense layers.

    Weights have unit variance and are scaled when used (equalised learning rate), and every downsampling is preceded by
    a blur, as in StyleGAN2.
    """

    def __init__(self, *, image_size: int, channels: int = 64, max_channels: int = 512, group_size: int = 4) -> None:
        """Make the network.

        Args:
            image_size: side of the square images in pixels, at least 8; it need not be a power of two.
            channels: width at full resolution; it doubles a block.
            max_channels: the widest it gets.
            group_size: images over which the deviation is taken, or the whole batch when that is smaller or not a
                multiple of it.
        """
        super().__init__()
        if image_size < 8:
            raise ValueError(
                f"image_size is {image_size}; the StyleGAN discriminator expects at least 8. Use patchgan."
            )
        num_blocks = int(math.log2(image_size // 4))
        widths = [min(channels * 2**i, max_channels) for i in range(num_blocks + 1)]
        side = image_size
        for _ in range(num_blocks):
            side = (side + 1) // 2
        self.image_size = image_size
        self.from_rgb = _Conv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(_DownBlock(a, b) for a, b in pairwise(widths)))
        self.deviation = _MinibatchDeviation(group_size)
        self.mix = _Conv(widths[-1] + 1, widths[-1], 3)
        self.dense = _Linear(widths[-1] * side**2, widths[-1])
        self.logit = _Linear(widths[-1], 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1"]:
        """Return one logit an image, positive for real, of images [B, 3, S, S] in [-1, 1], S = `image_size`."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {tuple(images.shape)}; expected {self.image_size} x {self.image_size} pixels."
            )
        x = self.blocks(_activate(self.from_rgb(images)))
        x = _activate(self.mix(self.deviation(x)))
        return self.logit(_activate(self.dense(x.flatten(1))))


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * math.sqrt(2)  # the gain keeps the variance


class _Conv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight * self.scale, self.bias, stride=self.stride, padding=padding)


class _Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = 1 / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class _Blur(nn.Module):
    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        binomial = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(binomial, binomial), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Four taps sit between pixels: with the stride-2 step after it, the result is centred on pairs of pixels.
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(F.pad(x, (1, 2, 1, 2), mode="replicate"), kernel, groups=channels)


class _DownBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.first = _Conv(in_channels, in_channels, 3)
        self.blur = _Blur()
        self.second = _Conv(in_channels, out_channels, 3, stride=2)
        self.shortcut = _Conv(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        deep = _activate(self.second(self.blur(_activate(self.first(x)))))
        return (deep + self.shortcut(self.blur(x))) / math.sqrt(2)


class _MinibatchDeviation(nn.Module):
    """Appends one channel: how much the images of a group differ, so that a lack of variety can be seen."""

    def __init__(self, group_size: int):
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        group = self.group_size if batch % self.group_size == 0 else batch
        groups = x.float().unflatten(0, (group, batch // group))
        deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        channel = deviation.repeat(group).view(batch, 1, 1, 1).expand(batch, 1, height, width)
        return torch.cat([x, channel.to(x.dtype)], dim=1)


class Discriminator(nn.Module):
    """What the engine trains: real and fake images go through the network separately.

    Separately, because batch norm would otherwise tell them apart by their common statistics. In the generator's step
    call `network` alone, on the bare module and with its parameters frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, real: Float[Tensor, "B 3 H W"], fake: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """Return the logits of real and of fake images, [B, 3, H, W] in [-1, 1]."""
        return self.network(real), self.network(fake)


def build_discriminator(
    kind: Literal["patchgan", "stylegan"], *, image_size: int, channels: int = 64, layers: int = 3
) -> Discriminator:
    """Make a discriminator for square images of `image_size` pixels.

    `channels` is the width at full resolution; `layers` counts PatchGAN's stride-2 convolutions (StyleGAN's blocks
    follow from the image size). Raises ValueError for another kind or an image that is too small.
    """
    if kind == "stylegan":
        return Discriminator(StyleDiscriminator(image_size=image_size, channels=channels))
    if kind == "patchgan":
        if image_size < 3 * 2**layers:
            raise ValueError(
                f"image_size is {image_size}; patchgan with {layers} layers expects at least {3 * 2**layers}. "
                "Lower discriminator_layers."
            )
        return Discriminator(PatchDiscriminator(channels=channels, layers=layers))
    raise ValueError(f"discriminator is {kind!r}; expected 'patchgan' or 'stylegan' ('none' builds no discriminator).")

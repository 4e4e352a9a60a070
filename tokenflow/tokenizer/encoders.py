"""Encoders of the branches: pixels to a feature map, then to code width (paper, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tokenflow.nn.conv_resnet import ConvEncoder
from tokenflow.nn.vision_transformer import VisionTransformer
from tokenflow.tokenizer.config import BranchConfig, EncoderConfig, Normalization

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class BranchEncoder(nn.Module):
    """Encoder of one branch, with the projection to its code width.

    Semantic branches project with linear, tanh, linear; convolutional ones with a 1x1 convolution.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.config = config.encoder
        width = config.encoder.width
        if config.encoder.kind == "convolutional":
            self.tower: nn.Module = ConvEncoder(config.encoder.convolutional)
            self.projection: nn.Module = nn.Conv2d(width, config.code_width, 1)
        else:
            self.tower = VisionTransformer(config.encoder.vision)
            self.projection = TanhHead(width, config.code_width)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B code h w"]:
        """Images in [-1, 1] to features [B, code_width, h, w], not normalised."""
        features = self.tower(prepare_images(images, config=self.config))
        if self.config.kind == "convolutional":
            return self.projection(features)
        features = self.projection(features)
        return rearrange(features, "b (h w) c -> b c h w", h=round(features.shape[1] ** 0.5))


class TanhHead(nn.Module):
    """Linear, tanh, linear: between a tower and the codes, on both sides."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, out_width)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N out"]:
        """Tokens [B, N, width] to [B, N, out_width]."""
        return self.output(self.hidden(x).tanh())


def prepare_images(images: Float[Tensor, "B 3 H W"], *, config: EncoderConfig) -> Float[Tensor, "B 3 S S"]:
    """Images in [-1, 1] as one encoder reads them: its size, clamping and normalisation."""
    size = config.input_size
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
    if config.clamp:
        images = images.clamp(-1, 1)
    return normalize(images, kind=config.normalization)


def normalize(images: Float[Tensor, "B 3 H W"], *, kind: Normalization) -> Float[Tensor, "B 3 H W"]:
    """Pixels in [-1, 1] to the range a pretrained tower was trained on."""
    if kind == "none":
        return images
    mean = images.new_tensor(CLIP_MEAN).view(1, 3, 1, 1)
    deviation = images.new_tensor(CLIP_DEVIATION).view(1, 3, 1, 1)
    return ((images + 1) / 2 - mean) / deviation

"""Decoders: codes to the teacher's features, codes to pixels (paper, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokenflow.nn.conv_resnet import ConvDecoder
from tokenflow.nn.vision_transformer import VisionTransformer
from tokenflow.tokenizer.config import PixelDecoderConfig, SemanticDecoderConfig
from tokenflow.tokenizer.encoders import TanhHead


class SemanticDecoder(nn.Module):
    """Code map to one predicted teacher token a cell."""

    def __init__(self, config: SemanticDecoderConfig) -> None:
        super().__init__()
        self.tower = VisionTransformer(config.vision)
        self.head = TanhHead(config.vision.width, config.out_width)

    def forward(self, codes: Float[Tensor, "B code h w"]) -> Float[Tensor, "B N C"]:
        """Codes [B, code, h, w] to tokens [B, h*w, out_width]."""
        return self.head(self.tower(codes))


class PixelDecoder(nn.Module):
    """Code map to an image."""

    def __init__(self, config: PixelDecoderConfig, *, code_width: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.projection = nn.Conv2d(code_width, config.convolutional.latent_channels, 1)
        self.network = ConvDecoder(config.convolutional)

    def forward(self, codes: Float[Tensor, "B code h w"]) -> Float[Tensor, "B 3 S S"]:
        """Codes [B, code, h, w] to images [B, 3, S, S], about [-1, 1], not clamped."""
        images = self.network(self.projection(codes))
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            # TokenFlow-XL decodes 27 cells to 432 pixels and shows 384.
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bicubic", align_corners=False)
        return images

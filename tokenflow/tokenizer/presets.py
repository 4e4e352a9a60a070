"""Named tokenizers and teachers: data, not classes.

Sizes follow Table 11 and, where paper and released weights differ, the released weights (see docs/paper_to_code.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenflow.nn.conv_resnet import ConvResnetConfig
from tokenflow.nn.mobile_stem import MobileStemConfig
from tokenflow.nn.vision_transformer import VisionTransformerConfig
from tokenflow.tokenizer.config import (
    BranchConfig,
    EncoderConfig,
    PixelDecoderConfig,
    SemanticDecoderConfig,
    TokenizerConfig,
)
from tokenflow.tokenizer.teachers import TeacherConfig

SCALES_224 = (1, 2, 4, 6, 8, 10, 12, 14)
SCALES_256 = (1, 2, 4, 6, 8, 10, 12, 14, 16)
SCALES_256_TABLE11 = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
SCALES_384 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27)

CLIP_B16 = VisionTransformerConfig(
    width=768,
    depth=12,
    heads=12,
    mlp_width=3072,
    patch_size=16,
    position_grid=14,
    position_interpolation_offset=0.1,
    class_token=True,
    patch_bias=False,
    pre_norm=True,
    activation="quick_gelu",
    norm_epsilon=1e-5,
)
VITAMIN_XL = VisionTransformerConfig(
    width=1152,
    depth=32,
    heads=16,
    mlp_width=2304,
    stem=MobileStemConfig(),
    final_norm=False,
    mlp="gated",
)
SIGLIP_SO400M = VisionTransformerConfig(
    width=1152,
    depth=27,
    heads=16,
    mlp_width=4304,
    patch_size=14,
    position_grid=27,
    final_norm=False,
    activation="gelu_tanh",
    unused_blocks=1,
    unused_head=True,
)
NANO_VISION = VisionTransformerConfig(
    width=64,
    depth=3,
    heads=4,
    mlp_width=256,
    patch_size=4,
    position_grid=8,
    class_token=True,
    patch_bias=False,
    pre_norm=True,
    norm_epsilon=1e-5,
)

_CLIP_ENCODER = EncoderConfig(kind="clip", vision=CLIP_B16, pretrained="openai")
_VITAMIN_ENCODER = EncoderConfig(
    kind="vitamin",
    vision=VITAMIN_XL,
    pretrained="vitamin_xlarge_256.datacomp1b_clip",
    clamp=True,
    normalization="clip",
)
_SIGLIP_ENCODER = EncoderConfig(
    kind="siglip", vision=SIGLIP_SO400M, pretrained="google/siglip-so400m-patch14-384", clamp=True
)
_PIXEL_CONVOLUTIONS = ConvResnetConfig()
_ENHANCED_DECODER = PixelDecoderConfig(convolutional=ConvResnetConfig(channels=256, blocks=4))
"""Twice the channels and blocks (appendix B.1); the authors' training puts it to any of the three."""


def _pixel_encoder(*, input_size: int | None = None) -> EncoderConfig:
    return EncoderConfig(kind="convolutional", convolutional=_PIXEL_CONVOLUTIONS, input_size=input_size)


def _semantic_decoder(*, width: int, out_width: int, grid: int, offset: float = 0.0) -> SemanticDecoderConfig:
    """The authors' three-block decoder with BEiT's biases."""
    vision = VisionTransformerConfig(
        width=width,
        depth=3,
        heads=12,
        mlp_width=4 * width,
        patch_size=1,
        in_channels=32,
        position_grid=grid,
        position_interpolation_offset=offset,
        class_token=True,
        attention_bias="query_value",
    )
    return SemanticDecoderConfig(vision=vision, out_width=out_width)


def _tokenizer(
    *,
    image_size: int,
    scales: tuple[int, ...],
    semantic: EncoderConfig,
    semantic_decoder: SemanticDecoderConfig,
    pixel_input_size: int | None = None,
) -> TokenizerConfig:
    """Table 11's common part: two codebooks of 32768 entries, 32 and 8 channels wide, w_dis 1."""
    return TokenizerConfig(
        image_size=image_size,
        codebook_size=32768,
        scales=scales,
        branches=(
            BranchConfig(name="semantic", encoder=semantic, code_width=32),
            BranchConfig(name="pixel", encoder=_pixel_encoder(input_size=pixel_input_size), code_width=8),
        ),
        semantic_decoder=semantic_decoder,
        pixel_decoder=PixelDecoderConfig(convolutional=_PIXEL_CONVOLUTIONS),
    )


def nano(*, image_size: int = 32) -> TokenizerConfig:
    """The tokenizer of the built-in world: 8x8 cells; `image_size` a multiple of 16. Two CPU cores train it."""
    patch_size = image_size // 8
    convolutional = ConvResnetConfig(
        channels=32,
        multipliers=(1, 2),
        blocks=1,
        latent_channels=64,
        attention=False,
        norm_groups=8,
        fold=image_size // 16,
    )
    return TokenizerConfig(
        image_size=image_size,
        codebook_size=1024,
        scales=(1, 2, 4, 8),
        branches=(
            BranchConfig(
                name="semantic",
                encoder=EncoderConfig(kind="open_clip", vision=dataclasses.replace(NANO_VISION, patch_size=patch_size)),
                code_width=16,
            ),
            # The small teacher's tokens are easily predicted: most of an index's bits should serve the pixels.
            BranchConfig(
                name="pixel",
                encoder=EncoderConfig(kind="convolutional", convolutional=convolutional),
                code_width=8,
                weight=3.0,
            ),
        ),
        semantic_decoder=SemanticDecoderConfig(
            vision=VisionTransformerConfig(
                width=64, depth=1, heads=4, mlp_width=128, patch_size=1, in_channels=16, position_grid=8
            ),
            out_width=64,
        ),
        pixel_decoder=PixelDecoderConfig(convolutional=convolutional),
    )


# The shared index taken apart, for `make ablation`: one branch alone, all else as in nano, so that an image is as many
# codes of as many bits. A code is a row of a table, so a wider one would tell the language model no more.
_NANO_PIXEL_ONLY = dataclasses.replace(
    nano(), branches=(dataclasses.replace(nano().branches[1], weight=1.0),), semantic_decoder=None
)
_NANO_SEMANTIC_ONLY = dataclasses.replace(nano(), branches=nano().branches[:1], pixel_decoder=None)

_B = _tokenizer(
    image_size=224,
    scales=SCALES_224,
    semantic=_CLIP_ENCODER,
    semantic_decoder=_semantic_decoder(width=768, out_width=512, grid=14, offset=0.1),
)
_B_256 = dataclasses.replace(_B, image_size=256, scales=SCALES_256)
_L = _tokenizer(
    image_size=256,
    scales=SCALES_256,
    semantic=_VITAMIN_ENCODER,
    semantic_decoder=_semantic_decoder(width=1152, out_width=1152, grid=16),
)
_XL = _tokenizer(
    image_size=384,
    scales=SCALES_384,
    semantic=_SIGLIP_ENCODER,
    semantic_decoder=_semantic_decoder(width=1152, out_width=1152, grid=27),
    pixel_input_size=432,
)
# Table 5 starts without CLIP's weights and adds one design choice a row.
_SHARED_MSVQ = _B.with_pretrained("random")
_SHARED = dataclasses.replace(_SHARED_MSVQ, scales=(14,))
_SEMANTIC_ONLY = dataclasses.replace(
    _SHARED,
    branches=_SHARED.branches[:1],
    pixel_decoder=PixelDecoderConfig(convolutional=_PIXEL_CONVOLUTIONS, reads=("semantic",)),
)

PRESETS: dict[str, TokenizerConfig] = {
    "tokenflow-nano": nano(),
    "tokenflow-nano-64": nano(image_size=64),
    "nano-pixel-only": _NANO_PIXEL_ONLY,
    "nano-semantic-only": _NANO_SEMANTIC_ONLY,
    "tokenflow-b": _B,
    "tokenflow-b-enhanced": dataclasses.replace(_B, pixel_decoder=_ENHANCED_DECODER),
    "tokenflow-b-256": _B_256,
    "tokenflow-b-256-enhanced": dataclasses.replace(_B_256, pixel_decoder=_ENHANCED_DECODER),
    "tokenflow-l": _L,
    "tokenflow-l-enhanced": dataclasses.replace(_L, pixel_decoder=_ENHANCED_DECODER),
    "tokenflow-l-table11": dataclasses.replace(_L, scales=SCALES_256_TABLE11),
    "tokenflow-xl": _XL,
    "tokenflow-xl-enhanced": dataclasses.replace(_XL, pixel_decoder=_ENHANCED_DECODER),
    "table5-semantic-only": _SEMANTIC_ONLY,
    "table5-shared": _SHARED,
    "table5-shared-msvq": _SHARED_MSVQ,
    "table5-full": _B,
    "vqgan": dataclasses.replace(_SHARED, branches=_B.branches[1:], semantic_decoder=None),
    "vqkd": dataclasses.replace(_SHARED, branches=_B.branches[:1], pixel_decoder=None),
}

TEACHERS: dict[str, TeacherConfig] = {
    "nano": TeacherConfig(kind="open_clip", vision=NANO_VISION, projection_width=64),
    "nano-64": TeacherConfig(
        kind="open_clip", vision=dataclasses.replace(NANO_VISION, patch_size=8), projection_width=64
    ),
    "clip-b16": TeacherConfig(
        kind="clip", vision=CLIP_B16, pretrained="openai", projection_width=512, normalization="clip"
    ),
    "vitamin-xl": TeacherConfig(
        kind="vitamin",
        vision=VITAMIN_XL,
        pretrained=_VITAMIN_ENCODER.pretrained,
        clamp=True,
        normalization="clip",
    ),
    "siglip-so400m": TeacherConfig(
        kind="siglip",
        vision=dataclasses.replace(SIGLIP_SO400M, depth=26, unused_blocks=0, unused_head=False),
        pretrained=_SIGLIP_ENCODER.pretrained,
        clamp=True,
    ),
}

PRESET_TEACHERS: dict[str, str] = {
    name: {
        "tokenflow-nano": "nano",
        "tokenflow-nano-64": "nano-64",
        "nano-semantic-only": "nano",
        "tokenflow-l": "vitamin-xl",
        "tokenflow-l-enhanced": "vitamin-xl",
        "tokenflow-l-table11": "vitamin-xl",
        "tokenflow-xl": "siglip-so400m",
        "tokenflow-xl-enhanced": "siglip-so400m",
    }.get(name, "clip-b16")
    for name, config in PRESETS.items()
    if config.semantic_decoder is not None
}
"""Teacher of each preset that has a semantic decoder."""


def preset(name: str, **overrides: Any) -> TokenizerConfig:
    """A named tokenizer, with some top-level fields replaced; `pretrained=` replaces the semantic encoders' source."""
    if name not in PRESETS:
        raise ValueError(f"unknown tokenizer preset {name!r}; expected one of {', '.join(PRESETS)}.")
    config = PRESETS[name]
    if "pretrained" in overrides:
        config = config.with_pretrained(overrides.pop("pretrained"))
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(overrides) - set(fields)):
        raise ValueError(f"a tokenizer has no {unknown[0]!r}; expected one of {', '.join(fields)}.")
    return dataclasses.replace(config, **overrides)


def teacher_preset(name: str, **overrides: Any) -> TeacherConfig:
    """A named teacher, with some fields replaced, e.g. `pretrained="runs/teacher"`."""
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher preset {name!r}; expected one of {', '.join(TEACHERS)}.")
    return dataclasses.replace(TEACHERS[name], **overrides)

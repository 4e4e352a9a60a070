"""What a stage 1 run will be, before it touches data or a device: parameters, tokens, memory, compute, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

from tokenflow.config import Launch
from tokenflow.tasks.cost import (
    FROZEN,
    THROUGH,
    TRAINED,
    Cost,
    closing_lines,
    cost_of,
    count_parameters,
    forward_flops,
    parameter_line,
    picture,
)
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.decoders import PixelDecoder, SemanticDecoder
from tokenflow.tokenizer.discriminators import build_discriminator
from tokenflow.tokenizer.encoders import BranchEncoder
from tokenflow.tokenizer.losses import TokenizerLossConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher, TeacherConfig

VGG16_PARAMETERS = 14_714_688
"""Of LPIPS' trunk; its linear heads are 1472 more."""


def plan(recipe: TokenizerRecipe, launch: Launch) -> Iterator[str]:
    """Lines of a dry run: parameters, tokens an image, estimated memory and compute, the resolved recipe."""
    config = recipe.model.config()
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    parts = {name: count_parameters(part) for name, part in tokenizer.named_children()}
    cost = cost_of_tokenizer(recipe)
    yield f"# {recipe.model.preset}, {config.image_size} pixels, codebook {config.codebook_size}"
    yield ""
    adversary = count_discriminator(recipe.loss, image_size=config.image_size)
    for name, count in {**parts, "tokenizer in all": sum(parts.values()), "discriminator": adversary}.items():
        yield parameter_line(name, count)
    yield parameter_line("frozen teacher, perceptual", cost.outside)
    yield f"{'tokens an image':<28} {config.num_tokens:>14,} = sum of squares of {config.scales}"
    yield from closing_lines(cost, recipe, launch)


def cost_of_tokenizer(recipe: TokenizerRecipe) -> Cost:
    """States and operations of stage 1."""
    config, teacher = recipe.model.config(), recipe.teacher.config(recipe.model.preset)
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
        teacher_parameters = 0 if teacher is None else count_parameters(Teacher(teacher))
    flops = TRAINED * encoder_flops(config) + search_flops(config) + TRAINED * pixel_decoder_flops(config)
    semantic = config.semantic_decoder
    if semantic is not None:
        maps = picture(config.grid, channels=config.width_of(semantic.reads))
        flops += TRAINED * forward_flops(lambda: SemanticDecoder(semantic), maps)
        flops += FROZEN * teacher_flops(teacher, image_size=config.image_size)
    flops += objective_flops(recipe.loss, teacher, image_size=config.image_size)
    return cost_of(
        recipe.train,
        unit="pictures",
        flops=flops,
        kind="convolutions",
        trained=sum(p.numel() for p in tokenizer.parameters() if p.requires_grad),
        adversary=count_discriminator(recipe.loss, image_size=config.image_size),
        outside=teacher_parameters + (VGG16_PARAMETERS if recipe.loss.perceptual == "lpips" else 0),
    )


@cache
def tokenizer_parameters(config: TokenizerConfig) -> int:
    """Parameters of a tokenizer."""
    with torch.device("meta"):
        return count_parameters(TokenFlowTokenizer(config))


@cache
def encoder_flops(config: TokenizerConfig) -> int:
    """Operations of all branches' encoders on a picture."""
    pixels = picture(config.image_size)
    return sum(forward_flops(lambda b=branch: BranchEncoder(b), pixels) for branch in config.branches)


def search_flops(config: TokenizerConfig) -> int:
    """Operations of the search for the nearest codes of a picture; it has no backward pass."""
    return 2 * config.num_tokens * config.codebook_size * sum(config.code_widths)


def encode_flops(config: TokenizerConfig) -> int:
    """Operations that turn a picture into codes."""
    return encoder_flops(config) + search_flops(config)


@cache
def pixel_decoder_flops(config: TokenizerConfig) -> int:
    """Operations of the pixel decoder on a picture's codes."""
    decoder = config.pixel_decoder
    if decoder is None:
        return 0
    width = config.width_of(decoder.reads)
    return forward_flops(
        lambda: PixelDecoder(decoder, code_width=width, image_size=config.image_size),
        picture(config.grid, channels=width),
    )


@cache
def teacher_flops(teacher: TeacherConfig | None, *, image_size: int) -> int:
    """Operations of a teacher on a picture."""
    return 0 if teacher is None else forward_flops(lambda: Teacher(teacher), picture(image_size))


def objective_flops(loss: TokenizerLossConfig, teacher: TeacherConfig | None, *, image_size: int) -> int:
    """Operations of equation 4 on a picture and its reconstruction, and of the discriminator's own step."""
    both = FROZEN + THROUGH
    flops = 0
    if loss.perceptual == "lpips":
        flops += both * _vgg16_flops(image_size)
    elif loss.perceptual == "teacher":
        flops += both * teacher_flops(teacher, image_size=image_size)
    if loss.discriminator != "none":
        judged = forward_flops(lambda: _discriminator(loss, image_size=image_size).network, picture(image_size))
        flops += (THROUGH + 2 * TRAINED) * judged
    return flops


@cache
def _vgg16_flops(image_size: int) -> int:
    from torchvision.models import vgg16

    return forward_flops(lambda: vgg16(weights=None).features, picture(image_size))


def count_discriminator(loss: TokenizerLossConfig, *, image_size: int) -> int:
    """Parameters of the discriminator that a loss asks for."""
    if loss.discriminator == "none":
        return 0
    with torch.device("meta"):
        return count_parameters(_discriminator(loss, image_size=image_size))


def _discriminator(loss: TokenizerLossConfig, *, image_size: int) -> nn.Module:
    return build_discriminator(
        loss.discriminator,
        image_size=image_size,
        channels=loss.discriminator_channels,
        layers=loss.discriminator_layers,
    )

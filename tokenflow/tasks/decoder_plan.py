"""What a stage 2 run will be, before it touches data or a device: parameters, memory, compute, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow.config import Launch
from tokenflow.tasks.cost import FROZEN, TRAINED, Cost, closing_lines, cost_of, count_parameters, parameter_line
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.tokenizer_plan import (
    VGG16_PARAMETERS,
    count_discriminator,
    encode_flops,
    objective_flops,
    pixel_decoder_flops,
)
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import PRESET_TEACHERS, preset, teacher_preset
from tokenflow.tokenizer.pretrained import read_tokenizer_config
from tokenflow.tokenizer.teachers import Teacher, TeacherConfig


def plan(recipe: DecoderRecipe, launch: Launch) -> Iterator[str]:
    """Lines of a dry run: parameters of both decoders, estimated memory and compute, the resolved recipe."""
    base, _, source = planned_tokenizer(recipe)
    with torch.device("meta"):
        replaced = count_parameters(TokenFlowTokenizer(base).pixel_decoder)
    cost = cost_of_decoder(recipe)
    adversary = count_discriminator(recipe.loss, image_size=base.image_size)
    yield f"# {source}, {base.image_size} pixels"
    yield ""
    yield parameter_line("decoder before", replaced)
    yield parameter_line("decoder to train", cost.engines[0].trained)
    yield parameter_line("discriminator", adversary)
    yield parameter_line("frozen tokenizer, perceptual", cost.outside)
    yield from closing_lines(cost, recipe, launch)


def cost_of_decoder(recipe: DecoderRecipe) -> Cost:
    """States and operations of stage 2."""
    base, teacher, _ = planned_tokenizer(recipe)
    enlarged = recipe.decoded(base)
    with torch.device("meta"):
        before, after = TokenFlowTokenizer(base), TokenFlowTokenizer(enlarged)
    judge = teacher if recipe.teacher is None else recipe.teacher.config("")
    return cost_of(
        recipe.train,
        unit="pictures",
        flops=FROZEN * encode_flops(base)
        + TRAINED * pixel_decoder_flops(enlarged)
        + objective_flops(recipe.loss, judge, image_size=base.image_size),
        kind="convolutions",
        trained=count_parameters(after.pixel_decoder),
        adversary=count_discriminator(recipe.loss, image_size=base.image_size),
        outside=count_parameters(before) + _count_perceptual(recipe, teacher),
    )


def _count_perceptual(recipe: DecoderRecipe, teacher: TeacherConfig | None) -> int:
    """Parameters of the frozen network behind the perceptual loss."""
    if recipe.loss.perceptual == "lpips":
        return VGG16_PARAMETERS
    config = teacher if recipe.teacher is None else recipe.teacher.config("")
    if recipe.loss.perceptual == "none" or config is None:
        return 0
    with torch.device("meta"):
        return count_parameters(Teacher(config))


def planned_tokenizer(recipe: DecoderRecipe) -> tuple[TokenizerConfig, TeacherConfig | None, str]:
    """(configuration of the tokenizer to start from, of its teacher, where they were read).

    Raises:
        OSError, ValueError: The folder is not a tokenizer's, or is not there and the recipe names no preset instead.
    """
    if Path(recipe.tokenizer).is_dir():
        return *read_tokenizer_config(recipe.tokenizer), recipe.tokenizer
    if recipe.preset is None:
        raise ValueError(
            f"tokenizer {recipe.tokenizer!r} is not a folder here, so there is nothing to plan with. Give --preset, "
            "such as tokenflow-b, or train or import the tokenizer first."
        )
    name = PRESET_TEACHERS.get(recipe.preset)
    teacher = None if name is None else teacher_preset(name)
    return preset(recipe.preset), teacher, f"{recipe.preset} (preset; {recipe.tokenizer} is not there yet)"

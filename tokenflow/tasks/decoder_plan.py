"""What a stage 2 run will be, before it touches data or a device: parameters, memory, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow.config import Launch, to_yaml
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.tokenizer_plan import VGG16_PARAMETERS, count_discriminator, count_parameters, memory_lines
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import PRESET_TEACHERS, preset, teacher_preset
from tokenflow.tokenizer.pretrained import read_tokenizer_config
from tokenflow.tokenizer.teachers import Teacher, TeacherConfig


def print_plan(recipe: DecoderRecipe, launch: Launch) -> None:
    """Print parameters of both decoders, estimated memory a GPU and the resolved recipe."""
    for line in plan(recipe, launch):
        print(line)


def plan(recipe: DecoderRecipe, launch: Launch) -> Iterator[str]:
    """The lines that `print_plan` prints."""
    base, teacher, source = planned_tokenizer(recipe)
    with torch.device("meta"):
        before, after = (TokenFlowTokenizer(config) for config in (base, recipe.decoded(base)))
    adversary = count_discriminator(recipe.loss, image_size=base.image_size)
    trained, replaced = (count_parameters(tokenizer.pixel_decoder) for tokenizer in (after, before))
    frozen = count_parameters(before) + _count_perceptual(recipe, teacher)
    yield f"# {source}, {base.image_size} pixels"
    yield ""
    yield f"{'decoder before':<28} {replaced:>14,} parameters"
    yield f"{'decoder to train':<28} {trained:>14,} parameters"
    yield f"{'discriminator':<28} {adversary:>14,} parameters"
    yield f"{'frozen tokenizer, perceptual':<28} {frozen:>14,} parameters"
    yield ""
    yield from memory_lines(recipe.train, launch, trained=trained, adversary=adversary, frozen=frozen)
    yield ""
    yield "# resolved recipe"
    yield to_yaml(recipe)


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

"""What a stage 2 run will be, before it touches data or a device: parameters, memory, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow.config import Launch, read_json, to_yaml
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.tokenizer_plan import VGG16_PARAMETERS, count_discriminator, count_parameters, memory_lines
from tokenflow.tokenizer.config import TokenizerConfig, from_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset


def print_plan(recipe: DecoderRecipe, launch: Launch) -> None:
    """Print parameters of both decoders, estimated memory a GPU and the resolved recipe."""
    for line in plan(recipe, launch):
        print(line)


def plan(recipe: DecoderRecipe, launch: Launch) -> Iterator[str]:
    """The lines that `print_plan` prints."""
    base, source = planned_tokenizer(recipe)
    with torch.device("meta"):
        before, after = (TokenFlowTokenizer(config) for config in (base, recipe.decoder.config(base)))
    adversary = count_discriminator(recipe.loss, image_size=base.image_size)
    trained, replaced = (count_parameters(tokenizer.pixel_decoder) for tokenizer in (after, before))
    frozen = count_parameters(before) + (VGG16_PARAMETERS if recipe.loss.perceptual == "lpips" else 0)
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


def planned_tokenizer(recipe: DecoderRecipe) -> tuple[TokenizerConfig, str]:
    """(configuration of the tokenizer to start from, where it was read).

    Raises:
        ValueError: The folder is not there and the recipe names no preset to plan with instead.
    """
    if Path(recipe.tokenizer).is_dir():
        described = read_json(Path(recipe.tokenizer) / "config.json")
        return from_dict(TokenizerConfig, described["tokenizer"]), recipe.tokenizer
    if recipe.preset is None:
        raise ValueError(
            f"tokenizer {recipe.tokenizer!r} is not a folder here, so there is nothing to plan with. Give --preset, "
            "such as tokenflow-b, or train or import the tokenizer first."
        )
    return preset(recipe.preset), f"{recipe.preset} (preset; {recipe.tokenizer} is not there yet)"

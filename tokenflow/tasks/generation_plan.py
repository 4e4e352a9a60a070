"""What a stage 3 run will be, before it touches a device: parameters, tokens, memory, epochs, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow.config import Launch, to_yaml
from tokenflow.data import SampleReader
from tokenflow.generation.config import GeneratorConfig, check_tokenizer
from tokenflow.generation.model import Generator
from tokenflow.generation.presets import PRESET_TOKENIZERS
from tokenflow.tasks.generation_recipe import TRAIN, GenerationRecipe
from tokenflow.tasks.generation_weights import generator_config, local_language_config
from tokenflow.tasks.tokenizer_plan import count_parameters, memory_lines
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.pretrained import read_tokenizer_config


def print_plan(recipe: GenerationRecipe, launch: Launch) -> None:
    """Print parameters, tokens an image, estimated memory a GPU, epochs and the resolved recipe."""
    for line in plan(recipe, launch):
        print(line)


def plan(recipe: GenerationRecipe, launch: Launch) -> Iterator[str]:
    """The lines that `print_plan` prints."""
    config = planned_config(recipe)
    tokenizer_config, source = planned_tokenizer(recipe)
    check_tokenizer(config, tokenizer_config, generator=f"(model.preset {recipe.model.preset})", name=source)
    with torch.device("meta"):
        generator, tokenizer = Generator(config), TokenFlowTokenizer(tokenizer_config)
    trained, frozen = count_parameters(generator), count_parameters(tokenizer)
    table = count_parameters(generator.language.embed_tokens) + count_parameters(generator.head)
    yield f"# generator {recipe.model.preset} on {source}, starting from {recipe.language or 'random weights'}"
    yield ""
    yield f"{'transformer layers':<28} {count_parameters(generator.language.layers):>14,} parameters"
    yield f"{'embedding table and head':<28} {table:>14,} parameters"
    yield f"{'generator in all':<28} {trained:>14,} parameters"
    yield f"{'frozen tokenizer':<28} {frozen:>14,} parameters"
    yield ""
    yield f"{config.num_codes:,} tokens an image of {config.codebook_size:,} codes: squares of {config.scales}"
    yield f"{config.num_positions:,} positions a sample, {config.field_length} of them before the image"
    yield epochs(recipe)
    yield ""
    yield from memory_lines(recipe.train, launch, trained=trained, adversary=0, frozen=frozen)
    yield ""
    yield "# resolved recipe"
    yield to_yaml(recipe)


def planned_config(recipe: GenerationRecipe) -> GeneratorConfig:
    """The generator's configuration as far as it is known without a network or captions."""
    config = generator_config(recipe, checkpoint=local_language_config(recipe.language))
    if config.prompt == "text" and (recipe.text_tokenizer or recipe.language or TRAIN) == TRAIN:
        config = config.with_text_vocabulary(recipe.text_vocabulary)
    return config


def planned_tokenizer(recipe: GenerationRecipe) -> tuple[TokenizerConfig, str]:
    """(configuration of the image tokenizer, where it was read): its folder, else the preset's own."""
    if Path(recipe.tokenizer).is_dir():
        return read_tokenizer_config(recipe.tokenizer)[0], recipe.tokenizer
    name = PRESET_TOKENIZERS[recipe.model.preset]
    return preset(name), f"{name} (preset; {recipe.tokenizer} is not there yet)"


def epochs(recipe: GenerationRecipe) -> str:
    """How often the run will see the data; unknown where the data is not there yet."""
    samples = recipe.train.steps * recipe.train.global_batch_size
    try:
        reader = SampleReader(recipe.data, seed=recipe.train.seed)
    except ValueError as error:
        return f"{samples:,} samples in all; epochs unknown: {error}"
    total = sum(reader.sizes)
    what = "pictures" if reader.codes is None else "encoded pictures"
    return f"{samples:,} samples in all: {samples / total:.2f} epochs of {total:,} {what}"

"""What a stage 3 run will be, before it touches a device: parameters, tokens, memory, compute, epochs, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow.config import Launch
from tokenflow.data import SampleReader
from tokenflow.generation.config import GeneratorConfig, check_tokenizer
from tokenflow.generation.model import Generator
from tokenflow.generation.presets import PRESET_TOKENIZERS
from tokenflow.tasks.cost import (
    FROZEN,
    TRAINED,
    Cost,
    causal_pairs,
    closing_lines,
    cost_of,
    count_parameters,
    layer_flops,
    parameter_line,
    trained_layers,
)
from tokenflow.tasks.generation_recipe import TRAIN, GenerationRecipe
from tokenflow.tasks.generation_weights import generator_config, local_language_config
from tokenflow.tasks.tokenizer_plan import encode_flops, tokenizer_parameters
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.pretrained import read_tokenizer_config


def plan(recipe: GenerationRecipe, launch: Launch) -> Iterator[str]:
    """Lines of a dry run: parameters, tokens an image, epochs, estimated memory, compute, the resolved recipe."""
    config = planned_config(recipe)
    tokenizer_config, source = planned_tokenizer(recipe)
    check_tokenizer(config, tokenizer_config, generator=f"(model.preset {recipe.model.preset})", name=source)
    with torch.device("meta"):
        generator = Generator(config)
    cost = cost_of_generation(recipe)
    table = count_parameters(generator.language.embed_tokens) + count_parameters(generator.head)
    yield f"# generator {recipe.model.preset} on {source}, starting from {recipe.language or 'random weights'}"
    yield ""
    yield parameter_line("transformer layers", count_parameters(generator.language.layers))
    yield parameter_line("embedding table and head", table)
    yield parameter_line("generator in all", cost.engines[0].trained)
    yield parameter_line("frozen tokenizer", cost.outside)
    yield ""
    yield f"{config.num_codes:,} tokens an image of {config.codebook_size:,} codes: squares of {config.scales}"
    yield f"{config.num_positions:,} positions a sample, {config.field_length} of them before the image"
    yield epochs(recipe)
    yield from closing_lines(cost, recipe, launch)


def cost_of_generation(recipe: GenerationRecipe) -> Cost:
    """States and operations of stage 3, the text field full and pictures encoded as they come."""
    config, (tokenizer, _) = planned_config(recipe), planned_tokenizer(recipe)
    with torch.device("meta"):
        trained = count_parameters(Generator(config))
    language, width = config.language, config.language.width
    layers = layer_flops(language, positions=config.num_positions, pairs=_pairs(config))
    rows = config.codebook_size if config.loss_over == "codes" else config.vocabulary_size
    head = 2 * width * rows * (config.num_codes + len(config.image_close))
    projector = 2 * width * (config.code_width + width) * (config.num_codes - 1)
    learned = trained_layers(language, layers) + TRAINED * (head + projector)
    encoding = FROZEN * encode_flops(tokenizer)
    return cost_of(
        recipe.train,
        unit="pictures",
        flops=learned + encoding,
        kind="transformer",
        trained=trained,
        outside=tokenizer_parameters(tokenizer),
        tokens=config.num_positions,
        remark=f"of it {encoding / (learned + encoding):.1%} to encode pictures, which stored codes save",
    )


def _pairs(config: GeneratorConfig) -> float:
    """Pairs of positions that see one another: text causal, a scale the text and all scales up to itself."""
    seen = config.field_length - 1
    pairs = causal_pairs(seen)
    for scale in config.scales:
        seen += scale**2
        pairs += scale**2 * seen
    return pairs


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

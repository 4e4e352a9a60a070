"""What a language model's run will be, before it touches data or a device: parameters, memory, compute, recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenflow.config import Launch
from tokenflow.tasks.cost import (
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
from tokenflow.tasks.language import LanguageRecipe
from tokenflow.understanding.text_model import TextModel


def plan(recipe: LanguageRecipe, launch: Launch) -> Iterator[str]:
    """Lines of a dry run: parameters, estimated memory and compute, the resolved recipe."""
    cost = cost_of_language(recipe)
    yield f"# a language model of {recipe.text_vocabulary} tokens, from random weights"
    yield ""
    yield parameter_line("language model", cost.engines[0].trained)
    yield from closing_lines(cost, recipe, launch)


def cost_of_language(recipe: LanguageRecipe) -> Cost:
    """States and operations of training, every document as long as a row may be."""
    config, positions = recipe.config(recipe.text_vocabulary), recipe.max_length
    with torch.device("meta"):
        trained = count_parameters(TextModel(config))
    layers = layer_flops(config, positions=positions, pairs=causal_pairs(positions))
    head = 2 * config.width * config.vocabulary_size * positions
    return cost_of(
        recipe.train,
        unit="documents",
        flops=trained_layers(config, layers) + TRAINED * head,
        kind="transformer",
        trained=trained,
        tokens=positions,
        remark=f"at most: every document is counted as {positions} tokens long",
    )

"""What a run of stage 4 or 5 will be, before it touches a device: parameters, positions, memory, compute, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tokenflow.config import Launch
from tokenflow.data import ConversationReader
from tokenflow.language.config import LanguageConfig
from tokenflow.nn.folder import read_description
from tokenflow.tasks.cost import (
    FROZEN,
    THROUGH,
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
from tokenflow.tasks.generation_weights import local_language_config
from tokenflow.tasks.tokenizer_plan import encode_flops, teacher_flops, tokenizer_parameters
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.tokenizer.config import from_dict
from tokenflow.tokenizer.presets import PRESET_TEACHERS, TEACHERS, preset
from tokenflow.tokenizer.pretrained import read_tokenizer_config
from tokenflow.tokenizer.teachers import Teacher, TeacherConfig
from tokenflow.understanding.config import UnderstandingConfig, projector_layers
from tokenflow.understanding.lora import add_lora
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.presets import PRESET_TOKENIZERS
from tokenflow.understanding.presets import preset as multimodal_preset


def plan(recipe: UnderstandingRecipe, launch: Launch) -> Iterator[str]:
    """Lines of a dry run: parameters, positions an image, epochs, estimated memory, compute, the resolved recipe."""
    tower_config, source = planned_tower(recipe)
    config = recipe.model.config(planned_language(recipe), tower_config)
    with torch.device("meta"):
        model = MultimodalModel(config)
    projector, whole = count_parameters(model.projector), count_parameters(model)
    cost = cost_of_understanding(recipe)
    begin = str(recipe.continue_from or recipe.language)
    begin += "" if Path(begin).is_dir() else " (not here; counted as the preset's)"
    yield f"# {recipe.model.preset} on {source}, starting from {begin}; {recipe.trains} learns"
    yield ""
    yield parameter_line("language model", whole - projector)
    yield parameter_line("projector", projector)
    yield parameter_line("frozen image tokenizer", cost.outside)
    yield ""
    yield f"an image takes {config.image_tokens} of {config.max_length} positions ({config.features}, {config.aspect})"
    yield f"template {config.template}"
    yield epochs(recipe)
    yield from closing_lines(cost, recipe, launch)


TEXT_TOKENS = {"plain": 64}
"""ASSUMED positions of text in a conversation: a caption in alignment's template."""
OTHER_TEXT_TOKENS = 256
"""ASSUMED in the other templates: questions and answers, and the system message."""


def cost_of_understanding(recipe: UnderstandingRecipe) -> Cost:
    """States and operations of stage 4 or 5, every conversation with one picture and an assumed length of text."""
    tower_config, _ = planned_tower(recipe)
    config = recipe.model.config(planned_language(recipe), tower_config)
    trained, inside, outside = _parameters(recipe, config, tower_config)
    language, width = config.language, config.language.width
    text = min(TEXT_TOKENS.get(config.template, OTHER_TEXT_TOKENS), config.max_length - config.image_tokens)
    positions = config.image_tokens + text
    layers = layer_flops(language, positions=positions, pairs=causal_pairs(positions))
    # Adapters are small beside what they adapt, whose weights need no gradient.
    passes = TRAINED if recipe.trains == "everything" else THROUGH
    head = 2 * width * language.vocabulary_size * text
    projector = 2 * width * (config.projector_width + (projector_layers(config.projector) - 1) * width)
    if isinstance(tower_config, TeacherConfig):
        seen = teacher_flops(tower_config, image_size=config.image_size)
    else:
        seen = encode_flops(tower_config)
    return cost_of(
        recipe.train,
        unit="conversations",
        flops=trained_layers(language, layers, passes=passes)
        + passes * head
        + TRAINED * projector * config.image_tokens
        + FROZEN * seen,
        kind="transformer",
        trained=trained,
        inside=inside,
        outside=outside,
        tokens=positions,
        remark=f"{positions} positions a conversation: one picture of {config.image_tokens}, {text} of text (assumed)",
    )


def _parameters(recipe: UnderstandingRecipe, config: UnderstandingConfig, tower: Any) -> tuple[int, int, int]:
    """Parameters that learn, frozen ones of the same model, those of the image tokenizer."""
    with torch.device("meta"):
        model = MultimodalModel(config)
        if recipe.trains == "lora":
            add_lora(model, recipe.lora)
        outside = count_parameters(Teacher(tower)) if isinstance(tower, TeacherConfig) else tokenizer_parameters(tower)
    whole = count_parameters(model)
    learned = {"projector": model.projector, "everything": model}.get(recipe.trains)
    if learned is not None:
        trained = count_parameters(learned)
    else:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, whole - trained, outside


def planned_language(recipe: UnderstandingRecipe) -> LanguageConfig:
    """Sizes of the language model: of the folder it starts from where that is here, else the preset's."""
    if recipe.continue_from is not None and Path(recipe.continue_from).is_dir():
        description = read_description(Path(recipe.continue_from), key="multimodal")["multimodal"]
        return from_dict(UnderstandingConfig, description).language
    found = local_language_config(recipe.language)
    return multimodal_preset(recipe.model.preset).language if found is None else found


def planned_tower(recipe: UnderstandingRecipe) -> tuple[Any, str]:
    """(configuration of the image tokenizer or teacher, where it was read): its folder, else the preset's own."""
    teacher = recipe.model.features == "teacher"
    if Path(recipe.tokenizer).is_dir():
        if teacher:
            description = read_description(Path(recipe.tokenizer), key="teacher")["teacher"]
            return from_dict(TeacherConfig, description), recipe.tokenizer
        return read_tokenizer_config(recipe.tokenizer)[0], recipe.tokenizer
    name = PRESET_TOKENIZERS[recipe.model.preset]
    note = f"{name} (preset; {recipe.tokenizer} is not there yet)"
    return (TEACHERS[PRESET_TEACHERS[name]] if teacher else preset(name)), note


def epochs(recipe: UnderstandingRecipe) -> str:
    """How often the run will see the data; unknown where the data is not there yet."""
    samples = recipe.train.steps * recipe.train.global_batch_size
    try:
        total = sum(ConversationReader(recipe.data, seed=recipe.train.seed).sizes)
    except ValueError as error:
        return f"{samples:,} conversations in all; epochs unknown: {error}"
    return f"{samples:,} conversations in all: {samples / total:.2f} epochs of {total:,}"

"""What a run of stage 4 or 5 will be, before it touches a device: parameters, positions, memory, epochs, recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tokenflow.config import Launch, to_yaml
from tokenflow.data import ConversationReader
from tokenflow.language.config import LanguageConfig
from tokenflow.nn.folder import read_description
from tokenflow.tasks.generation_weights import local_language_config
from tokenflow.tasks.tokenizer_plan import count_parameters, memory_lines
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.tokenizer.config import from_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import PRESET_TEACHERS, TEACHERS, preset
from tokenflow.tokenizer.pretrained import read_tokenizer_config
from tokenflow.tokenizer.teachers import Teacher, TeacherConfig
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.presets import PRESET_TOKENIZERS
from tokenflow.understanding.presets import preset as multimodal_preset


def print_plan(recipe: UnderstandingRecipe, launch: Launch) -> None:
    """Print parameters, positions an image, estimated memory a GPU, epochs and the resolved recipe."""
    for line in plan(recipe, launch):
        print(line)


def plan(recipe: UnderstandingRecipe, launch: Launch) -> Iterator[str]:
    """The lines that `print_plan` prints."""
    tower_config, source = planned_tower(recipe)
    config = recipe.model.config(planned_language(recipe), tower_config)
    with torch.device("meta"):
        model = MultimodalModel(config)
        tower = Teacher(tower_config) if isinstance(tower_config, TeacherConfig) else TokenFlowTokenizer(tower_config)
    projector, whole = count_parameters(model.projector), count_parameters(model)
    trained = {"projector": projector, "everything": whole}.get(recipe.trains)
    begin = recipe.continue_from or recipe.language
    yield f"# {recipe.model.preset} on {source}, starting from {begin}; {recipe.trains} learns"
    yield ""
    yield f"{'language model':<28} {whole - projector:>14,} parameters"
    yield f"{'projector':<28} {projector:>14,} parameters"
    yield f"{'frozen image tokenizer':<28} {count_parameters(tower):>14,} parameters"
    yield ""
    yield f"an image takes {config.image_tokens} of {config.max_length} positions ({config.features}, {config.aspect})"
    yield f"template {config.template}"
    yield epochs(recipe)
    yield ""
    if trained is None:
        yield "memory is not estimated for low-rank adapters"
    else:
        frozen = count_parameters(tower) + whole - trained
        yield from memory_lines(recipe.train, launch, trained=trained, adversary=0, frozen=frozen)
    yield ""
    yield "# resolved recipe"
    yield to_yaml(recipe)


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

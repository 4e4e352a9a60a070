"""First weights of a generator that starts from a language model: read, extended or made one tensor at a time."""

from __future__ import annotations

import copy
import dataclasses
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenflow.config import read_json
from tokenflow.generation.backbone import backbone_weights
from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.language.config import LanguageConfig
from tokenflow.language.hf import HfLanguage, language_config
from tokenflow.language.lazy_tensors import LazyTensors
from tokenflow.language.vocabulary import NewRows
from tokenflow.tasks.generation_recipe import GenerationRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "<img>", "</img>"
_FROM_PRESET = ("norm_order", "qk_norm", "attention", "checkpointing", "vocabulary_size")


def generator_config(
    recipe: GenerationRecipe,
    *,
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    checkpoint: LanguageConfig | None = None,
) -> GeneratorConfig:
    """The generator to train: the recipe's, with the sizes of the checkpoint and the ids of the text tokenizer.

    Raises:
        ValueError: They do not go together.
    """
    config = recipe.model.config()
    if checkpoint is not None:
        kept = {name: getattr(config.language, name) for name in _FROM_PRESET}
        config = dataclasses.replace(config, language=dataclasses.replace(checkpoint, tie_embeddings=False, **kept))
    if text_tokenizer is None or len(text_tokenizer) == config.pad_token:
        return config
    close = _ids(text_tokenizer, _CLOSE) if config.image_close else ()
    if close and text_tokenizer.eos_token_id is not None:
        close = (*close, text_tokenizer.eos_token_id)
    return config.with_text_vocabulary(
        len(text_tokenizer),
        image_open=_ids(text_tokenizer, _OPEN) if config.image_open else (),
        image_close=close,
    )


def _ids(text_tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(text_tokenizer(text, add_special_tokens=False)["input_ids"])


def local_language_config(source: str | None) -> LanguageConfig | None:
    """Sizes of a checkpoint in a folder here; None for a hub id, or without a checkpoint. Nothing is downloaded."""
    if source is None or not Path(source).is_dir():
        return None
    return language_config(read_json(Path(source) / "config.json"))


def initial_weights(config: GeneratorConfig, checkpoint: HfLanguage, *, new_rows: NewRows, seed: int) -> LazyTensors:
    """Every weight of a generator by name, for `Engine(weights=...)`: no more than one is in memory.

    What the checkpoint lacks starts as its module starts it in a new model, from a draw of its own.
    """
    known = backbone_weights(config, checkpoint, new_rows=new_rows)
    with torch.device("meta"):
        generator = Generator(config)
    missing = [name for name in generator.state_dict() if name not in known]
    new = {name: partial(_new_weight, generator, name, seed=seed) for name in missing}
    return known.joined(LazyTensors(new))


def _new_weight(generator: Generator, name: str, *, seed: int) -> Tensor:
    """One weight of a generator on `meta`, drawn by the module that owns it."""
    owner, _, own_name = name.rpartition(".")
    module = copy.deepcopy(generator.get_submodule(owner)).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        module.reset_parameters()
    return getattr(module, own_name).detach()

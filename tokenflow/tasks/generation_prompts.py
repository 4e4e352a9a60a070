"""What a sample is called: its caption or its class as the first part of a sequence, with the draws of training."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenflow.config import Launch
from tokenflow.data import DataConfig, SampleReader, read_captions
from tokenflow.data.folders import FolderSource
from tokenflow.data.hashing import mix
from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.text_field import TextField, TextTokens, class_tokens
from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece
from tokenflow.tasks.generation_recipe import TRAIN, GenerationRecipe
from tokenflow.tasks.text_tokenizers import kept_text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_STREAM = 0x7E47
"""Keeps these draws apart from the loader's, which come from the same seed."""
_SENTENCE = re.compile(r".*?(?:[.!?]+(?=\s|$)|[。！？])", re.DOTALL)
_MEASURED = 2000
"""Captions whose length is looked at."""
_LABELS = ("cls", "label", "class")


class Prompts(Protocol):
    """Turns a batch into the text part of its sequences."""

    def training(self, batch: Mapping[str, Any]) -> TextTokens:
        """With what training drops and shortens, which depends on `sample_seed` alone."""

    def evaluation(self, batch: Mapping[str, Any]) -> TextTokens:
        """As it is."""


class TextPrompts:
    """Captions: dropped with one probability, cut to their first sentence with another."""

    def __init__(self, field: TextField, *, caption_drop: float, first_sentence: float) -> None:
        self.field = field
        self.caption_drop = caption_drop
        self.first_sentence = first_sentence

    def training(self, batch: Mapping[str, Any]) -> TextTokens:
        """Token ids of captions as training draws them."""
        pairs = zip(batch["captions"], batch["sample_seed"].tolist(), strict=True)
        return self.field([self.drawn(caption, seed) for caption, seed in pairs])

    def evaluation(self, batch: Mapping[str, Any]) -> TextTokens:
        """Token ids of whole captions."""
        return self.field(batch["captions"])

    def drawn(self, caption: str, seed: int) -> str:
        """The caption that training sees for a sample: a function of the two alone."""
        rng = random.Random(mix(seed, _STREAM))
        dropped, shortened = rng.random() < self.caption_drop, rng.random() < self.first_sentence
        if dropped:
            return ""
        return first_sentence(caption) if shortened else caption


class ClassPrompts:
    """Class numbers: of the sample's `.cls` or record, else the place of its folder among all class folders."""

    def __init__(self, config: GeneratorConfig, *, caption_drop: float, folders: Sequence[str]) -> None:
        self.config = config
        self.caption_drop = caption_drop
        self.folders = {name: number for number, name in enumerate(folders)}

    def training(self, batch: Mapping[str, Any]) -> TextTokens:
        """Classes, dropped as training draws it."""
        labels = [
            None if random.Random(mix(seed, _STREAM)).random() < self.caption_drop else label
            for label, seed in zip(self.labels(batch), batch["sample_seed"].tolist(), strict=True)
        ]
        return class_tokens(labels, self.config)

    def evaluation(self, batch: Mapping[str, Any]) -> TextTokens:
        """Classes; a batch's padding has none."""
        mask = batch["mask"].tolist()
        batch = {**batch, "captions": [None] * len(mask)}
        return class_tokens(self.labels(batch, mask=mask), self.config)

    def labels(self, batch: Mapping[str, Any], *, mask: Sequence[bool] | None = None) -> list[int | None]:
        """Class of every sample; None for padding.

        Raises:
            ValueError: A sample says no class.
        """
        records = batch.get("records") or [None] * len(batch["keys"])
        used = [True] * len(records) if mask is None else mask
        rows = zip(batch["keys"], records, used, strict=True)
        return [self._label(key, record or {}) if wanted else None for key, record, wanted in rows]

    def _label(self, key: str, record: Mapping[str, Any]) -> int:
        for name in _LABELS:
            if isinstance(record.get(name), int):
                return record[name]
        folder = key.split("/")[0]
        if folder in self.folders:
            return self.folders[folder]
        raise ValueError(
            f"sample {key!r} says no class: expected a .cls member, a number as {', '.join(_LABELS)} of its .json, "
            "or a folder of pictures with one folder a class."
        )


def first_sentence(caption: str) -> str:
    """A caption up to the end of its first sentence; all of it where it has no end."""
    match = _SENTENCE.match(caption)
    return match.group().strip() if match else caption


def class_folders(data: DataConfig) -> list[str]:
    """Names of the class folders of all folder sources, sorted: their places are the classes."""
    reader = SampleReader(data, seed=0)
    files = [name for source in reader.sources if isinstance(source, FolderSource) for name in source.files]
    return sorted({name.split("/")[0] for name in files if "/" in name})


def build_text_tokenizer(recipe: GenerationRecipe, launch: Launch) -> PreTrainedTokenizerBase | None:
    """The text tokenizer of a run; None for class prompts. Every rank calls it; rank 0 trains where that is asked for.

    A trained one lies in the run's folder. A run that goes on keeps it, and one that starts from a checkpoint or a
    model of another run takes that run's.

    Raises:
        ValueError: It cannot be had, or the captions do not suffice to train one.
    """
    if recipe.model.config().prompt == "class":
        return None
    source = recipe.text_tokenizer or recipe.language or TRAIN
    if source != TRAIN:
        return load_text_tokenizer(source)
    return kept_text_tokenizer(launch, partial(_train, recipe))


def _train(recipe: GenerationRecipe, folder: Path) -> None:
    captions = list(read_captions(recipe.data, at_most=recipe.text_captions))
    train_sentencepiece(captions, folder, vocabulary_size=recipe.text_vocabulary)
    tokenizer, limit = load_text_tokenizer(folder), recipe.model.config().text_length
    lengths = [len(tokenizer(caption)["input_ids"]) for caption in captions[:_MEASURED]]
    cut = sum(length > limit for length in lengths) / len(lengths)
    logger.info("text tokenizer of %d tokens; a caption has up to %d of them", len(tokenizer), max(lengths))
    if cut:
        logger.warning(
            "%.1f %% of the captions are longer than text_length %d and will be cut. Raise text_vocabulary (%d) or "
            "model.text_length.",
            100 * cut,
            limit,
            recipe.text_vocabulary,
        )

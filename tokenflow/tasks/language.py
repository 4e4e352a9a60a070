"""Before stage 4, where no pretrained language model fits: a small one learns from plain text."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenflow.config import Launch
from tokenflow.data import ConversationConfig, ConversationReader, ConversationSample, ConversationSourceConfig
from tokenflow.data.samples import BadSample
from tokenflow.language.config import LANGUAGE_PRESETS, LanguageConfig
from tokenflow.language.hf_export import hf_description, save_hf_language
from tokenflow.language.text_tokenizer import train_sentencepiece
from tokenflow.tasks.conversation_batches import EvaluationConversations, Prepared, batch_of, token_means
from tokenflow.tasks.stage import engine_options
from tokenflow.tasks.text_tokenizers import kept_text_tokenizer
from tokenflow.train import (
    Engine,
    Engines,
    EvalResult,
    Metrics,
    OptimizerConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
    TrainState,
    decay_matrices_only,
    distributed,
)
from tokenflow.understanding.batching import Packing
from tokenflow.understanding.config import TemplateName
from tokenflow.understanding.conversation_tokens import ConversationTokenizer, Tokens
from tokenflow.understanding.presets import nano_language
from tokenflow.understanding.templates import TEMPLATES, render
from tokenflow.understanding.text_model import TextModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ENGINE = "language"


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """The run of a small language model, whole."""

    name: str
    """Names the run's folder and its MLflow run."""
    data: ConversationConfig
    """Text: .txt files with a document a line, or conversations without pictures (.json, .jsonl)."""
    train: TrainConfig
    """Steps, batch sizes, precision, intervals."""
    preset: str = "nano"
    """`nano`, or a name of `tokenflow.language.config.LANGUAGE_PRESETS`, for its sizes."""
    language: dict[str, Any] = field(default_factory=dict)
    """Fields of its configuration to replace, such as `depth` or `width`."""
    template: TemplateName = "vicuna_v1"
    """How conversations are written: as the multimodal model will write them, so that it knows the form by then."""
    system: str = ""
    """Their system message; empty: none."""
    text_vocabulary: int = 400
    """Tokens at most of the sentencepiece model that is trained on the text."""
    text_documents: int = 100_000
    """Documents of each file that it is trained on."""
    max_length: int = 256
    """Positions of a row; what lies behind is cut off."""
    packing: Packing = "rows"
    """`rows`: several documents a row, which do not see one another."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser; vectors (norms) are not decayed."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    evaluation_sources: tuple[ConversationSourceConfig, ...] = ()
    """Text whose loss an evaluation measures; when empty, the first documents of the training text."""
    evaluation_documents: int = 64
    """How many of them, at most."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        for name in ("text_vocabulary", "text_documents", "max_length", "evaluation_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        config = self.config(self.text_vocabulary)
        hf_description(config)
        if self.max_length > config.max_positions:
            raise ValueError(f"max_length is {self.max_length}; this model has {config.max_positions} positions")

    def config(self, text_vocabulary: int) -> LanguageConfig:
        """The model's configuration, with as many tokens as its text tokenizer has."""
        if self.preset != "nano" and self.preset not in LANGUAGE_PRESETS:
            raise ValueError(f"preset is {self.preset!r}; expected one of nano, {', '.join(LANGUAGE_PRESETS)}")
        base = nano_language() if self.preset == "nano" else LANGUAGE_PRESETS[self.preset]
        try:
            return dataclasses.replace(
                base, tie_embeddings=False, **(self.language | {"vocabulary_size": text_vocabulary})
            )
        except TypeError as error:
            raise ValueError(f"language {sorted(self.language)}: {error}") from error


class Document:
    """Reads a line of text, or a conversation, as a document: all of it is learned but the first token."""

    def __init__(self, recipe: LanguageRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.reader = ConversationTokenizer(tokenizer, recipe.template, system=recipe.system)

    def __call__(self, sample: ConversationSample) -> Prepared:
        """Tokens of one document; runs in the loader's processes."""
        if sample.images:
            raise BadSample(f"it has {len(sample.images)} pictures; a language model reads text")
        line = _line(sample)
        if line is None:
            ids = self.reader(sample.turns).ids
        else:
            ids = [*self.tokenizer(line)["input_ids"], self.tokenizer.eos_token_id]
        return Prepared(Tokens(ids, list(ids)), torch.zeros(0, 3, 1, 1))


class LanguageParts:
    """What a run has before there is an engine: text tokenizer and configuration."""

    def __init__(self, recipe: LanguageRecipe, launch: Launch) -> None:
        self.recipe = recipe
        self.text_tokenizer = kept_text_tokenizer(launch, partial(_train_tokenizer, recipe))
        self.config = recipe.config(len(self.text_tokenizer))
        self.prepare = Document(recipe, self.text_tokenizer)

    def evaluation(self) -> EvaluationConversations:
        """This rank's documents for evaluations during training."""
        recipe = self.recipe
        return EvaluationConversations(
            recipe.data,
            sources=recipe.evaluation_sources,
            at_most=recipe.evaluation_documents,
            batch_size=recipe.train.micro_batch_size,
            prepare=self.prepare,
        )


def build_engines(recipe: LanguageRecipe, launch: Launch, *, parts: LanguageParts) -> Engines:
    """The model's engine. Every rank calls it."""
    engine = Engine(
        lambda: TextModel(parts.config),
        name=ENGINE,
        optimizer=recipe.optimizer,
        **engine_options(recipe, launch),
        parameter_groups=partial(decay_matrices_only, weight_decay=recipe.optimizer.weight_decay),
        ema_decay=recipe.train.ema_decay,
        weights=launch.init_from,
    )
    return {ENGINE: engine}


def export(engines: Engines, directory: Path, *, parts: LanguageParts) -> None:
    """Write a Hugging Face folder with its text tokenizer, with averaged weights if there are any. Every rank calls."""
    weights = engines[ENGINE].gathered_average()
    if not distributed.is_main_process():
        return
    language = {name.removeprefix("language."): w for name, w in weights.items() if name.startswith("language.")}
    save_hf_language(directory, config=parts.config, weights=language, head=weights["head.weight"])
    parts.text_tokenizer.save_pretrained(directory)
    logger.info("language model written to %s", directory)


class LanguageTask:
    """What a micro-batch of text does."""

    def __init__(self, recipe: LanguageRecipe, *, evaluation: Iterable[tuple[list[Prepared], bool]]) -> None:
        """`evaluation` is this rank's part, iterable anew."""
        self.recipe, self.evaluation = recipe, evaluation

    def train_step(self, engines: Engines, batch: Mapping[str, Any], state: TrainState) -> Metrics:
        """Forward and backward."""
        engine = engines[ENGINE]
        output = engine(self._batch(batch["samples"]))
        engine.backward(output.loss)
        return {"loss": output.loss.detach(), "accuracy": output.accuracy.detach()}

    @torch.no_grad()
    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """Loss and accuracy over the tokens of the evaluation documents of all ranks."""
        batches = (((self._batch(samples),), counts) for samples, counts in self.evaluation)
        return EvalResult(metrics=token_means(engines[ENGINE], batches))

    def state_dict(self) -> dict[str, Any]:
        """No state besides the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _batch(self, samples: list[Prepared]) -> Any:
        return batch_of(samples, image_tokens=1, max_length=self.recipe.max_length, packing=self.recipe.packing)[0]


def _line(sample: ConversationSample) -> str | None:
    """The line of a .txt; None for a conversation."""
    return sample.turns[-1][1] if not sample.turns[0][1] else None


def _train_tokenizer(recipe: LanguageRecipe, folder: Path) -> None:
    def text(sample: ConversationSample) -> str:
        written = _line(sample) or render(recipe.template, sample.turns, system=recipe.system)
        # The end of an answer is a token of its own.
        return written.replace(TEMPLATES[recipe.template].end, " ").strip()

    reader = ConversationReader(recipe.data, seed=0, prepare=text)
    starts = [sum(reader.sizes[:number]) for number in range(len(reader.sizes))]
    texts = [
        reader.read_in_order(start + index)
        for start, size in zip(starts, reader.sizes, strict=True)
        for index in range(min(size, recipe.text_documents))
    ]
    documents = [text for text in texts if isinstance(text, str)]
    train_sentencepiece(documents, folder, vocabulary_size=recipe.text_vocabulary)

"""What a stage 3 run is: image tokenizer, transformer, text, data (paper, section 3.3)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from tokenflow.data import DataConfig, SourceConfig
from tokenflow.generation.config import GeneratorConfig, LossOver
from tokenflow.generation.options import SamplingConfig, Steps
from tokenflow.generation.presets import preset
from tokenflow.language.vocabulary import NewRows
from tokenflow.train import OptimizerConfig, ScheduleConfig, TrackingConfig, TrainConfig

TRAIN = "train"
"""Text tokenizer: a small sentencepiece model of the training captions."""


@dataclass(frozen=True, kw_only=True)
class GeneratorChoice:
    """Which generator to train."""

    preset: str
    """A name of `tokenflow.generation.presets.PRESETS`."""
    text_length: int | None = None
    """Tokens of the text field, BOS included; longer captions are cut. Null: the preset's."""
    loss_over: LossOver | None = None
    """Softmax over the full `vocabulary` (the authors') or over the image `codes`, without text after the image. Null:
    the preset's."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Further top-level fields of the preset to replace, such as `scales`, `codebook_size` or `code_width`."""
    language: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset's transformer to replace, such as `depth`, `checkpointing` or `attention`."""

    def config(self) -> GeneratorConfig:
        """The generator's configuration, checked; a checkpoint and a text tokenizer may still change its sizes."""
        overrides = {key: _from_text(value) for key, value in self.overrides.items()}
        if self.text_length is not None:
            overrides["text_length"] = self.text_length
        if self.loss_over is not None:
            overrides["loss_over"] = self.loss_over
            if self.loss_over == "codes":
                overrides.setdefault("image_close", ())
        language = {key: _from_text(value) for key, value in self.language.items()}
        try:
            base = preset(self.preset)
            return dataclasses.replace(base, language=dataclasses.replace(base.language, **language), **overrides)
        except TypeError as error:
            raise ValueError(
                f"model.overrides {sorted(overrides)}, model.language {sorted(language)}: {error}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class SampleChoice:
    """What evaluations during training paint."""

    prompts: tuple[str, ...] = ()
    """Texts, or class numbers; none: nothing is painted."""
    guidance_scale: float = 7.5
    """Guidance at the last scale, rising linearly."""
    steps: Steps = "three-step"
    """The paper's multi-step sampling."""
    seed: int = 0
    """Of the pictures: the same at every evaluation."""


@dataclass(frozen=True, kw_only=True)
class GenerationRecipe:
    """A stage 3 run, whole. The image tokenizer stays as it is."""

    name: str
    """Names the run's folder and its MLflow run."""
    tokenizer: str
    """Folder or hub id of the trained image tokenizer."""
    model: GeneratorChoice
    """The transformer and its sequence."""
    data: DataConfig
    """What to train on: pictures with captions, or what `tokenflow encode-shards` made of them."""
    train: TrainConfig
    """Steps, batch sizes, precision, intervals."""
    language: str | None = None
    """Folder or hub id of the Llama checkpoint to start from, which also gives its sizes; null: random weights."""
    new_rows: NewRows = "mean"
    """How rows of `[PAD]` and image tokens start in a checkpoint's embedding table and head: the `mean` of the known
    ones, or `random`. QK-norms start at one, embeddings and projector as in a new model."""
    construction: Literal["whole", "sharded"] = "whole"
    """`sharded`: under ZeRO-3 no rank ever holds the whole model; for billions of parameters."""
    text_tokenizer: str | None = None
    """Folder or hub id, or `train`: a small sentencepiece model of the training captions, made once and kept in the
    run's folder. Null: that of `language`, or `train` without one. Class prompts have none."""
    text_vocabulary: int = 512
    """Tokens at most of a tokenizer that is trained here."""
    text_captions: int = 100_000
    """Samples of each source whose captions it is trained on."""
    caption_drop: float = 0.1
    """Probability that a sample is trained without its caption (or class), for guidance."""
    first_sentence: float = 0.2
    """Probability that only the first sentence of a caption is used (paper, section 4.1)."""
    refinement: float = 0.0
    """Probability that a sample also teaches refinement steps: at one scale its input holds a guess of the scale's own
    codes, right in part. 0 is the paper's training, whose model meets such inputs only when it samples."""
    scale_weights: tuple[float, ...] = ()
    """What a token of each scale counts in the loss; none: all the same, as in the paper. The first scales decide where
    things go, are a few tokens in a hundred, and so are learned last."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of the generator; vectors (norms, biases) are not decayed."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    evaluation_sources: tuple[SourceConfig, ...] = ()
    """Images or codes whose loss an evaluation measures; when empty, the first of the training sources."""
    evaluation_images: int = 64
    """How many of them, at most."""
    samples: SampleChoice = field(default_factory=SampleChoice)
    """Pictures to paint at every evaluation."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        for name in ("caption_drop", "first_sentence", "refinement"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability, such as 0.1")
        if self.text_vocabulary < 1 or self.text_captions < 1 or self.evaluation_images < 1:
            raise ValueError(
                f"text_vocabulary {self.text_vocabulary}, text_captions {self.text_captions}, evaluation_images "
                f"{self.evaluation_images}: expected all three at least 1"
            )
        config = self.model.config()
        self._check_weights(config)
        SamplingConfig.named(
            self.samples.steps, codebook_size=config.codebook_size, guidance_scale=self.samples.guidance_scale
        )
        if config.prompt == "class":
            self._check_classes(config)

    def _check_weights(self, config: GeneratorConfig) -> None:
        weights = self.scale_weights
        if weights and (len(weights) != len(config.scales) or not all(0 < weight < math.inf for weight in weights)):
            raise ValueError(
                f"scale_weights are {weights}; expected a number above 0 for each of {len(config.scales)} scales, or "
                "none to count all tokens alike"
            )

    def _check_classes(self, config: GeneratorConfig) -> None:
        if not self.data.records:
            raise ValueError(f"{self.model.preset} is prompted by classes, which records hold. Set data.records true.")
        if self.text_tokenizer is not None:
            raise ValueError(
                f"text_tokenizer is {self.text_tokenizer!r}, but {self.model.preset} is prompted by classes: set null."
            )
        wrong = [prompt for prompt in self.samples.prompts if not prompt.isdigit() or int(prompt) >= config.num_classes]
        if wrong:
            raise ValueError(f"samples.prompts has {wrong[0]!r}; expected class numbers below {config.num_classes}.")


def _from_text(value: Any) -> Any:
    """A value that came from the command line as text, typed; lists become tuples."""
    value = yaml.safe_load(value) if isinstance(value, str) else value
    return tuple(value) if isinstance(value, list) else value

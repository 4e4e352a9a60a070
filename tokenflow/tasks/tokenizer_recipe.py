"""What a stage 1 run is: tokenizer, teacher, losses, data, optimisers (paper, section 3.2 and Table 11)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from tokenflow.data import DataConfig, SourceConfig
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.losses import TokenizerLossConfig
from tokenflow.tokenizer.presets import PRESET_TEACHERS, preset, teacher_preset
from tokenflow.tokenizer.teachers import TeacherConfig
from tokenflow.train import OptimizerConfig, ScheduleConfig, TrackingConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """Which tokenizer to train."""

    preset: str
    """A name of `tokenflow.tokenizer.presets.PRESETS`."""
    pretrained: str | None = None
    """First weights of the semantic encoder: a tag, hub id, file or folder; `random` for none; null: the preset's."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Top-level fields of the preset to replace, such as `codebook_size` or `entropy_weight`."""

    def config(self) -> TokenizerConfig:
        """The tokenizer's configuration, checked."""
        overrides = {key: _from_text(value) for key, value in self.overrides.items()}
        if self.pretrained is not None:
            overrides["pretrained"] = self.pretrained
        return preset(self.preset, **overrides)


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """Which frozen teacher gives the semantic targets."""

    preset: str | None = None
    """A name of `tokenflow.tokenizer.presets.TEACHERS`; null: the one that belongs to the tokenizer's preset."""
    pretrained: str | None = None
    """Its weights: a tag, hub id, file or folder; `random` for tests; null: the preset's."""

    def config(self, tokenizer_preset: str) -> TeacherConfig | None:
        """The teacher's configuration; None where the tokenizer has no semantic decoder and none is named."""
        name = self.preset or PRESET_TEACHERS.get(tokenizer_preset)
        if name is None:
            return None
        return teacher_preset(name, **({} if self.pretrained is None else {"pretrained": self.pretrained}))


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """A stage 1 run, whole."""

    name: str
    """Names the run's folder and its MLflow run."""
    model: TokenizerChoice
    """The tokenizer."""
    data: DataConfig
    """What to train on."""
    train: TrainConfig
    """Steps, batch sizes, precision, intervals."""
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    """The frozen teacher."""
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    """Equation 4 and its weights."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(name="adam"))
    """Of the tokenizer."""
    discriminator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(name="adam"))
    """Of the discriminator."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps, of both."""
    scale_drop: float = 0.1
    """Probability that a step leaves out one scale (never the first)."""
    usage_window: int = 512
    """Images, over all ranks, on which usage and perplexity look back."""
    evaluation_sources: tuple[SourceConfig, ...] = ()
    """Images that an evaluation during training reconstructs; when empty, the first of the training sources, and the
    curve is then one of seen images."""
    evaluation_images: int = 64
    """How many of them, at most."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale_drop <= 1:
            raise ValueError(f"scale_drop is {self.scale_drop}; expected a probability, such as 0.1")
        config = self.model.config()
        if self.train.precision == "bf16":
            raise ValueError(
                "train.precision is bf16, which also puts codebooks and distances in bf16; a tokenizer expects fp32 or "
                "bf16_autocast. Set train.precision bf16_autocast."
            )
        if config.pixel_decoder is None and self.loss.discriminator != "none":
            raise ValueError(
                f"{self.model.preset} has no pixel decoder, so nothing to discriminate. Set loss.discriminator none."
            )
        if self.data.image_size != config.image_size:
            raise ValueError(
                f"data.image_size is {self.data.image_size}, but {self.model.preset} reads {config.image_size} pixels. "
                "Make them equal."
            )
        teacher = self.teacher.config(self.model.preset)
        if config.semantic_decoder is not None and teacher is None:
            raise ValueError(f"{self.model.preset} has a semantic decoder but no teacher. Set teacher.preset.")
        if config.semantic_decoder is not None and teacher.width != config.semantic_decoder.out_width:
            raise ValueError(
                f"the teacher's tokens are {teacher.width} wide, the semantic decoder predicts "
                f"{config.semantic_decoder.out_width}. Choose the teacher that belongs to {self.model.preset}."
            )


def _from_text(value: Any) -> Any:
    """A value that came from the command line as text, typed; lists become tuples."""
    value = yaml.safe_load(value) if isinstance(value, str) else value
    return tuple(value) if isinstance(value, list) else value

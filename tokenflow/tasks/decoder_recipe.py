"""What a stage 2 run is: whose decoder, how much larger, which losses and data (paper, appendix B.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from tokenflow.data import DataConfig, SourceConfig
from tokenflow.nn.grow import enlarged
from tokenflow.tasks.tokenizer_recipe import TeacherChoice
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.losses import TokenizerLossConfig
from tokenflow.train import OptimizerConfig, ScheduleConfig, TrackingConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class DecoderChoice:
    """The decoder to train, as seen from the tokenizer's own."""

    channel_factor: int = 2
    """Channels over those of the tokenizer's decoder; the paper doubles them."""
    block_factor: int = 2
    """Residual blocks over those of the tokenizer's decoder; the paper doubles them."""
    start: Literal["grown", "random"] = "grown"
    """`grown`: the larger decoder starts as the same function as the tokenizer's, at its quality; `random`: from random
    weights, as the authors' code does. With both factors 1, `grown` just goes on training."""

    def __post_init__(self) -> None:
        for name in ("channel_factor", "block_factor"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"decoder.{name} is {getattr(self, name)}; expected at least 1 (1 keeps the size, the paper: 2)."
                )

    def config(self, tokenizer: TokenizerConfig) -> TokenizerConfig:
        """The tokenizer with the decoder to train."""
        decoder = tokenizer.pixel_decoder
        if decoder is None:
            raise ValueError("the tokenizer has no pixel decoder to train. Choose one that reconstructs pictures.")
        convolutional = enlarged(
            decoder.convolutional, channel_factor=self.channel_factor, block_factor=self.block_factor
        )
        return dataclasses.replace(tokenizer, pixel_decoder=dataclasses.replace(decoder, convolutional=convolutional))


@dataclass(frozen=True, kw_only=True)
class DecoderRecipe:
    """A stage 2 run, whole. Encoders, codebooks and semantic decoder stay as they are, so codes do too."""

    name: str
    """Names the run's folder and its MLflow run."""
    tokenizer: str
    """Folder or hub id of the trained tokenizer."""
    data: DataConfig
    """What to train on."""
    train: TrainConfig
    """Steps, batch sizes, precision, intervals."""
    decoder: DecoderChoice = field(default_factory=DecoderChoice)
    """How much larger, and from what it starts."""
    preset: str | None = None
    """What `--dry_run` plans with while `tokenizer` is not there yet: a name of PRESETS."""
    teacher: TeacherChoice | None = None
    """For `loss.perceptual: teacher`; when null, the one that the tokenizer was trained with."""
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    """Equation 4; `semantic_weight` has nothing to weigh here."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(name="adam"))
    """Of the decoder."""
    discriminator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(name="adam"))
    """Of the discriminator."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps, of both."""
    evaluation_sources: tuple[SourceConfig, ...] = ()
    """Images that an evaluation during training reconstructs; when empty, the first of the training sources."""
    evaluation_images: int = 64
    """How many of them, at most."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if self.train.precision == "bf16":
            raise ValueError(
                "train.precision is bf16, which also puts the decoder's parameters in bf16; a decoder expects fp32 or "
                "bf16_autocast. Set train.precision bf16_autocast."
            )
        if self.decoder.start == "random" and self.decoder.channel_factor == self.decoder.block_factor == 1:
            raise ValueError(
                "decoder.start is random with channel_factor 1 and block_factor 1: that would forget the decoder and "
                "gain nothing. Set start grown to go on training it, or a factor of 2."
            )

    def decoded(self, tokenizer: TokenizerConfig) -> TokenizerConfig:
        """The tokenizer with the decoder to train.

        Raises:
            ValueError: It has no pixel decoder, or reads pictures of another size than the recipe's.
        """
        if tokenizer.image_size != self.data.image_size:
            raise ValueError(
                f"data.image_size is {self.data.image_size}, but the tokenizer {self.tokenizer} reads "
                f"{tokenizer.image_size} pixels. Make them equal."
            )
        return self.decoder.config(tokenizer)

"""A small CLIP-style teacher for data without one: contrastive training of an open_clip model (Radford et al. 2021)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.config import Launch
from tokenflow.data import DataConfig
from tokenflow.tasks.stage import engine_options
from tokenflow.tokenizer.teachers import SmallClipConfig, build_open_clip, load_teacher, save_teacher
from tokenflow.train import (
    Engine,
    Engines,
    Metrics,
    OneModelTask,
    OptimizerConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
    TrainState,
    distributed,
)

logger = logging.getLogger(__name__)

ENGINE = "teacher"


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """A teacher's run."""

    name: str
    """Names the run's folder and its MLflow run."""
    data: DataConfig
    """Pictures with captions."""
    train: TrainConfig
    """Steps, batch sizes, precision, intervals."""
    model: SmallClipConfig = field(default_factory=SmallClipConfig)
    """Sizes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if self.train.precision == "bf16":
            raise ValueError("train.precision is bf16; a teacher is trained in fp32 or bf16_autocast. Set one of them.")
        if self.data.image_size != self.model.image_size:
            raise ValueError(
                f"data.image_size is {self.data.image_size}, model.image_size {self.model.image_size}; make them equal."
            )


class ContrastiveModel(nn.Module):
    """The two towers and their loss, so that one engine call is a whole forward pass."""

    def __init__(self, config: SmallClipConfig) -> None:
        super().__init__()
        self.clip = build_open_clip(config)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`images` [B, 3, S, S] in [-1, 1], `tokens` [B, T], `same` [B, B]: which captions are equal -> loss, accuracy.

        In a small world captions repeat within a batch; equal ones share the target instead of being each other's
        negatives.
        """
        images, texts, scale = self.clip(batch["images"], batch["tokens"])
        logits = scale.float() * images.float() @ texts.float().T
        targets = batch["same"] / batch["same"].sum(dim=1, keepdim=True)
        loss = 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))
        right = batch["same"].gather(1, logits.argmax(dim=1, keepdim=True))
        return {"loss": loss, "accuracy": right.mean()}


class TeacherTask(OneModelTask):
    """Tokenise captions, then forward and backward."""

    def __init__(self, recipe: TeacherRecipe) -> None:
        from open_clip import SimpleTokenizer

        self.recipe = recipe
        self.tokenizer = SimpleTokenizer(context_length=recipe.model.context_length)

    def train_step(self, engines: Engines, batch: Mapping[str, Any], state: TrainState) -> Metrics:
        """One micro-batch of pictures and captions."""
        captions = batch["captions"]
        device = batch["images"].device
        numbers = torch.tensor([captions.index(caption) for caption in captions], device=device)
        pairs = {
            "images": batch["images"],
            "tokens": self.tokenizer(captions).to(device),
            "same": (numbers[:, None] == numbers[None, :]).float(),
        }
        return super().train_step(engines, pairs, state)


def build_engines(recipe: TeacherRecipe, launch: Launch) -> Engines:
    """The teacher's engine. Every rank calls it."""
    engine = Engine(
        lambda: _build(recipe, launch.init_from),
        name=ENGINE,
        optimizer=recipe.optimizer,
        **engine_options(recipe, launch),
        ema_decay=recipe.train.ema_decay,
    )
    return {ENGINE: engine}


def _build(recipe: TeacherRecipe, init_from: str | None) -> ContrastiveModel:
    model = ContrastiveModel(recipe.model)
    if init_from is not None:
        model.clip.load_state_dict(load_teacher(init_from).state_dict())
    return model


def export(recipe: TeacherRecipe, engines: Engines, directory: Path) -> None:
    """Write the teacher where `teacher.pretrained` and `model.pretrained` of a tokenizer recipe find it."""
    weights = engines[ENGINE].gathered_average()
    if not distributed.is_main_process():
        return
    model = ContrastiveModel(recipe.model)
    model.load_state_dict(weights)
    save_teacher(model.clip, directory)
    logger.info("teacher written to %s", directory)

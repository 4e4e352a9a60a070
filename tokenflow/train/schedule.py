"""Optimisers and learning-rate schedules, as data and as a function of the step.

The schedule is a plain function of the step and not an object with state: there is nothing to save, and a resumed
run cannot be off by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimiser, and its constants."""

    name: Literal["adamw", "adam", "muon"] = "adamw"
    """`adamw` decays the weights apart from the gradient; `adam` adds the decay to the gradient; `muon` takes
    orthogonal steps for the weights of linear layers and AdamW's for the rest (ZeRO off only)."""
    learning_rate: float = 1e-4
    """Peak learning rate, reached after the warm-up."""
    matrix_learning_rate: float = 0.02
    """Peak learning rate of the matrices that `muon` orthogonalises; it follows the same schedule."""
    momentum: float = 0.95
    """Momentum of those matrices."""
    newton_schulz_steps: int = 5
    """Iterations that make them orthogonal; 3 cost less and are nearly as good for small matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Weight decay of the parameter groups that set none themselves."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "matrix_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0, such as 1e-4")
        if not 0 <= self.momentum < 1 or self.newton_schulz_steps < 1:
            raise ValueError(
                f"momentum is {self.momentum} and newton_schulz_steps {self.newton_schulz_steps}; expected a number in "
                "[0, 1), such as 0.95, and at least 1"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; expected two numbers in [0, 1), such as (0.9, 0.95)")
        if self.weight_decay < 0 or self.eps <= 0:
            raise ValueError(
                f"weight_decay is {self.weight_decay} and eps {self.eps}; expected weight_decay >= 0 and eps > 0"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the run: linear warm-up, then constant, cosine or linear decay."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    """What happens after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_ratio: float = 0.0
    """Warm-up as a share of all steps, used when warmup_steps is 0 (LLaVA recipes say 0.03)."""
    min_ratio: float = 0.0
    """Learning rate at the last step as a share of the peak (cosine and linear)."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio < 1 or not 0 <= self.min_ratio <= 1:
            raise ValueError(
                f"warmup_steps {self.warmup_steps}, warmup_ratio {self.warmup_ratio}, min_ratio {self.min_ratio}: "
                "expected warmup_steps >= 0, warmup_ratio in [0, 1) and min_ratio in [0, 1]"
            )
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and warmup_ratio {self.warmup_ratio} are both set; set only one"
            )


def learning_rate_at(step: int, *, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of one optimiser step.

    Args:
        step: Index of the step, from 0.
        steps: Steps of the whole run.
        optimizer: Holds the peak.
        schedule: Holds the shape.
    """
    peak = optimizer.learning_rate
    warmup = schedule.warmup_steps or math.ceil(schedule.warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * falling)


def decay_matrices_only(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weight decay for matrices and kernels, none for biases, norms and other vectors.

    Under ZeRO-3 a parameter is empty between uses; its full shape is then `ds_shape`.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) >= 2]
    chosen = {id(parameter) for parameter in matrices}
    vectors = [parameter for parameter in trained if id(parameter) not in chosen]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

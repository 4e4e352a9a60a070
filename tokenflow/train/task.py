"""What a stage must say about itself for `fit` to train it: one step, one evaluation, a little state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from tokenflow.train.engine import Engine
from tokenflow.train.state import TrainState

Engines = Mapping[str, Engine]
Metrics = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One evaluation, the same on every rank (rank 0's is written)."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name."""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Pictures by name: uint8 [H, W, 3]."""
    alarms: tuple[str, ...] = ()
    """What looks wrong, in words (a constant reconstruction, dead codes)."""


class Task(Protocol):
    """A stage: what one micro-batch does, how to evaluate. It never logs, saves or schedules."""

    def train_step(self, engines: Engines, batch: Any, state: TrainState) -> Metrics:
        """Forward and backward of one micro-batch, on every engine that takes part in this step.

        `fit` calls `engine.step` afterwards. Every rank must return the same names; every value must be a scalar that
        is finite when all is well: a non-finite one skips the step and is named in the log.
        """
        ...

    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """Called on all ranks in lockstep, modules in evaluation mode with averaged weights, gradients off."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """This rank's state besides weights (usage windows): tensors, numbers, strings, lists, dictionaries."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


class OneModelTask:
    """A task with one engine whose module takes a batch and returns a dictionary with a `loss`."""

    def train_step(self, engines: Engines, batch: Any, state: TrainState) -> Metrics:
        """Forward, backward, and the module's terms as metrics."""
        (engine,) = engines.values()
        terms = engine(batch)
        engine.backward(terms["loss"])
        return {name: value.detach() for name, value in terms.items()}

    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """Nothing to measure by default."""
        return EvalResult()

    def state_dict(self) -> dict[str, Any]:
        """No state besides the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

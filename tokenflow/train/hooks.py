"""Hooks of the training loop: they are told what happened, and change nothing."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tokenflow.train import distributed
from tokenflow.train.config import TrainConfig
from tokenflow.train.state import TrainState
from tokenflow.train.task import EvalResult

logger = logging.getLogger(__name__)


class Hook:
    """Every method does nothing by default. Called on every rank; `state` and the rest are read-only."""

    def started(self, state: TrainState, config: TrainConfig) -> None:
        """Before the first step."""

    def entered(self, state: TrainState, phase: str) -> None:
        """Whenever the loop goes over to another phase, the same ones in the same order on every rank.

        They are `loading`, `computing`, `agreeing`, `updating`, `logging`, `evaluating` and `saving`.
        """

    def stepped(self, state: TrainState) -> None:
        """After every step."""

    def logged(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Every `log_every` steps: that step's metrics, averaged over micro-batches and ranks."""

    def evaluated(self, state: TrainState, result: EvalResult) -> None:
        """After an evaluation."""

    def saving(self, state: TrainState) -> None:
        """Before a checkpoint: what was written so far must be on disk."""

    def saved(self, state: TrainState, folder: Path) -> None:
        """After a checkpoint is complete."""

    def finished(self, state: TrainState, outcome: str) -> None:
        """After the last step (`finished`) or a stop signal (`stopped`)."""

    def failed(self, state: TrainState) -> None:
        """When training ends with an error, which is raised after this."""


class ConsoleProgress(Hook):
    """A progress bar on a terminal, plain lines otherwise (at most one every few seconds). Rank 0 only."""

    def __init__(self, *, seconds_between_lines: float = 5.0, unit: str = "images") -> None:
        self._seconds = seconds_between_lines
        self._unit = unit
        self._steps = 0
        self._last_line = float("-inf")
        self._began = (0.0, 0)
        self._bar = None
        self._active = distributed.is_main_process()

    def started(self, state: TrainState, config: TrainConfig) -> None:
        """Show where the run begins."""
        self._steps = config.steps
        self._began = (time.monotonic(), state.step)
        if not self._active:
            return
        if state.step:
            logger.info("resuming at step %d of %d", state.step, config.steps)
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._row = self._bar.add_task("training", total=config.steps, completed=state.step, metrics="")
            self._bar.start()

    def stepped(self, state: TrainState) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._row, completed=state.step)

    def logged(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Show the metrics."""
        if not self._active:
            return
        shown = [
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if "/" not in name and (name, value) != ("skipped_steps", 0)
        ]
        text = "  ".join(shown[:8])
        if "samples_per_second" in metrics:
            text = text.replace("samples_per_second", f"{self._unit}/s")
        if self._bar is not None:
            self._bar.update(self._row, metrics=text)
            return
        now = time.monotonic()
        if now - self._last_line >= self._seconds or state.step >= self._steps:
            self._last_line = now
            logger.info("step %d/%d  %s  eta %s", state.step, self._steps, text, self._remaining(state))

    def evaluated(self, state: TrainState, result: EvalResult) -> None:
        """Show the evaluation."""
        if self._active and result.metrics:
            text = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items() if "/" not in name)
            logger.info("evaluation at step %d: %s", state.step, text)

    def finished(self, state: TrainState, outcome: str) -> None:
        """Close the bar."""
        self.failed(state)
        if self._active:
            logger.info("%s at step %d of %d", outcome, state.step, self._steps)

    def failed(self, state: TrainState) -> None:
        """Close the bar without a word: the error speaks."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _remaining(self, state: TrainState) -> str:
        began, first = self._began
        done = state.step - first
        seconds = (time.monotonic() - began) / max(1, done) * (self._steps - state.step)
        return str(timedelta(seconds=round(seconds)))


def _make_bar():
    import rich
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
        console=rich.get_console(),
    )

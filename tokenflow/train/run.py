"""A run's folder: its checkpoints, its tracker, its progress bar, tied together for a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenflow.config import to_yaml
from tokenflow.train import distributed
from tokenflow.train.checkpoint import Checkpoints
from tokenflow.train.config import TrainConfig
from tokenflow.train.hang import HangWatch
from tokenflow.train.hooks import ConsoleProgress, Hook
from tokenflow.train.state import TrainState
from tokenflow.train.task import Engines, Task
from tokenflow.train.tracking import Tracker, TrackingConfig

EXIT_STOPPED = 75
"""What a pipeline's process returns after a stop signal: EX_TEMPFAIL, "try again", so that a batch script requeues."""


class Run:
    """One run's folder. As a context, it closes the tracker when training raises."""

    def __init__(
        self,
        output: str | Path,
        *,
        recipe: Any,
        train: TrainConfig,
        tracking: TrackingConfig | None = None,
        name: str | None = None,
        hooks: Sequence[Hook] = (),
        unit: str = "images",
    ) -> None:
        """Every rank makes one.

        Args:
            output: The run's folder, on a file system that all ranks share.
            recipe: The whole recipe (dataclass or dictionary): written down, and compared at a resume.
            train: The recipe's training section.
            tracking: The recipe's tracking section.
            name: The MLflow run's name; the folder's by default.
            hooks: Further hooks, after the hang watch, the progress bar and the tracker.
            unit: What a sample is called in the log.
        """
        self.output = Path(output)
        self.train = train
        self.tracker = Tracker(
            self.output, config=tracking or TrackingConfig(), name=name or self.output.name, recipe=recipe
        )
        self.checkpoints = Checkpoints(
            self.output,
            recipe=recipe,
            keep_last=train.keep_last,
            run_info=lambda: {"mlflow_run_id": self.tracker.run_id(), "world_size": distributed.world_size()},
        )
        self.hooks: list[Hook] = [
            HangWatch(self.output / "heartbeats"),
            ConsoleProgress(unit=unit),
            self.tracker,
            *hooks,
        ]
        self._recipe = recipe

    def resume(self, task: Task, engines: Engines, *, mode: str = "auto") -> TrainState:
        """Begin or go on (see `Checkpoints.resume`), and open the tracker there."""
        state = self.checkpoints.resume(task, engines, mode=mode, seed=self.train.seed)
        self.tracker.open(state, new_run=mode != "auto")
        if distributed.is_main_process():
            (self.output / "recipe.yaml").write_text(to_yaml(self._recipe), encoding="utf-8")
        return state

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.tracker.close("FAILED")

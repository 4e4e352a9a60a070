"""What a run leaves to look at: `metrics.jsonl`, always, and an MLflow run beside it.

`metrics.jsonl` has one JSON object a row: `step`, `kind` (`train` or `evaluation`), `samples`, `time` and the
metrics. A resumed run first drops the rows after its step, so no step appears twice.

MLflow is written from a thread of its own: a store that is slow or dead costs plots, never the run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokenflow.config import flatten, to_dict
from tokenflow.train import distributed
from tokenflow.train.hooks import Hook
from tokenflow.train.mlflow_writer import MlflowWriter
from tokenflow.train.state import TrainState
from tokenflow.train.task import EvalResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides `metrics.jsonl`."""

    mlflow: bool = True
    """Whether to write an MLflow run."""
    uri: str | None = None
    """MLflow server; the embedded SQLite store `mlflow.db` beside the run's folder when null."""
    experiment: str = "tokenflow"
    """MLflow experiment."""
    system_metrics: bool = True
    """Whether MLflow also records processor, memory, disk, network and GPU load."""


class Tracker(Hook):
    """Writes metrics and pictures, on rank 0 only."""

    def __init__(self, output: Path, *, config: TrackingConfig, name: str, recipe: Any = None) -> None:
        """Nothing is opened before `open`.

        Args:
            output: The run's folder.
            config: Whether and where MLflow.
            name: The MLflow run's name.
            recipe: Logged as MLflow parameters.
        """
        self._output = Path(output)
        self._config = config
        self._name = name
        self._recipe = to_dict(recipe) if recipe is not None else {}
        self._mlflow: MlflowWriter | None = None
        self._active = distributed.is_main_process()

    @property
    def path(self) -> Path:
        """The run's `metrics.jsonl`."""
        return self._output / "metrics.jsonl"

    def run_id(self) -> str | None:
        """The MLflow run's id, once there is one."""
        return self._mlflow.run_id if self._mlflow is not None else None

    def open(self, state: TrainState, *, new_run: bool = False) -> None:
        """Begin after `state.step`: drop later rows, and continue the folder's MLflow run unless a new one is asked."""
        if not self._active:
            return
        self._output.mkdir(parents=True, exist_ok=True)
        truncate_rows(self.path, after_step=state.step)
        if not self._config.mlflow:
            return
        root = self._output.resolve().parent
        uri = self._config.uri or f"sqlite:///{root / 'mlflow.db'}"
        artifacts = None if self._config.uri else (root / "mlartifacts").as_uri()
        self._mlflow = MlflowWriter(
            uri=uri,
            artifacts=artifacts,
            experiment=self._config.experiment,
            system_metrics=self._config.system_metrics,
            memory=self._output / "mlflow.json",
            new_run=new_run,
        )
        self._mlflow.begin(self._name, flatten(self._recipe))

    def logged(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """One row of training metrics."""
        self._write("train", state, metrics)

    def evaluated(self, state: TrainState, result: EvalResult) -> None:
        """One row of evaluation metrics, and the pictures as PNG files and MLflow images."""
        self._write("evaluation", state, result.metrics, alarms=result.alarms)
        if not self._active:
            return
        folder = self._output / "images"
        for name, image in result.images.items():
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{name}_{state.step:08d}.png")
            if self._mlflow is not None:
                self._mlflow.image(name, image, state.step)

    def saving(self, state: TrainState) -> None:
        """A checkpoint must not be ahead of the metrics on disk."""
        if self._active and self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def finished(self, state: TrainState, outcome: str) -> None:
        """Flush and close."""
        self.close("FINISHED" if outcome == "finished" else "KILLED")

    def failed(self, state: TrainState) -> None:
        """Flush and close, and say that the run failed."""
        self.close("FAILED")

    def close(self, status: str) -> None:
        """End the MLflow run with a status; does nothing the second time."""
        if self._mlflow is not None:
            self._mlflow.end(status)
            self._mlflow = None

    def _write(
        self, kind: str, state: TrainState, metrics: Mapping[str, float], *, alarms: tuple[str, ...] = ()
    ) -> None:
        if not self._active:
            return
        row: dict[str, Any] = {
            "step": state.step,
            "kind": kind,
            "samples": state.samples,
            "time": round(time.time(), 3),
        }
        # JSON knows no NaN.
        row.update({name: value if math.isfinite(value) else None for name, value in metrics.items()})
        if alarms:
            row["alarms"] = list(alarms)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._mlflow is not None:
            prefix = "" if kind == "train" else "evaluation/"
            self._mlflow.metrics({f"{prefix}{name}": v for name, v in metrics.items() if math.isfinite(v)}, state.step)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line that a killed process left unfinished is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: an unfinished row is dropped", path)
    return rows


def truncate_rows(path: Path, *, after_step: int) -> None:
    """Drop the rows after a step from a `metrics.jsonl`, atomically."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row["step"] <= after_step]
    temporary = path.with_suffix(".jsonl.new")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, path)

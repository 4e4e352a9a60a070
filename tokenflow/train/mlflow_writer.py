"""MLflow, written from a thread of its own."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tokenflow.train.provenance import git_revision

logger = logging.getLogger(__name__)


class MlflowWriter:
    """MLflow calls in a thread of their own; failures are counted and said once, then MLflow is given up."""

    GIVE_UP_AFTER = 5

    def __init__(
        self, *, uri: str, artifacts: str | None, experiment: str, system_metrics: bool, memory: Path, new_run: bool
    ) -> None:
        """Start the thread; nothing is written before `begin`.

        Args:
            uri: Tracking store.
            artifacts: Where a new experiment keeps its files; the server's choice when None.
            experiment: Experiment name, created if it does not exist.
            system_metrics: Whether to record the machine's load.
            memory: File that remembers the run's id for the next process.
            new_run: Whether to begin a new run although one is remembered.
        """
        # Offline, MLflow would wait for a telemetry host, and for minutes for a dead server.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.run_id: str | None = None if new_run else remembered_run(memory, uri=uri)
        self._memory = memory
        self._experiment = experiment
        self._system_metrics = system_metrics
        self._uri = uri
        self._artifacts = artifacts
        self._client: Any = None
        self._monitor: Any = None
        self._failures = 0
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Create or continue the run."""
        self._put(lambda: self._begin(name, parameters))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step."""
        now = int(time.time() * 1000)
        self._put(lambda: self._log_metrics(dict(values), step, now))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Log a picture at a step."""
        self._put(lambda: self._client.log_image(self.run_id, image, key=name, step=step, synchronous=True))

    def end(self, status: str, *, timeout_seconds: float = 60.0) -> None:
        """Write what is left, within a time."""
        self._put(lambda: self._end(status))
        self._put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.warning("MLflow at %s did not answer in time; metrics.jsonl is complete", self._uri)

    def _put(self, job: Callable[[], None] | None) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            logger.debug("MLflow is too slow; a row was dropped")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._failures >= self.GIVE_UP_AFTER:
                continue
            try:
                job()
                self._failures = 0
            except Exception as error:
                # Whatever MLflow, its database or the network raise: plots are lost, the run goes on.
                self._failures += 1
                if self._client is None:
                    self._failures = self.GIVE_UP_AFTER
                if self._failures in (1, self.GIVE_UP_AFTER):
                    logger.warning("MLflow at %s: %s; metrics.jsonl is still written", self._uri, error)

    def _begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        # It prints of database tables and monitoring between a run's lines, through a handler of its own.
        logging.getLogger("mlflow").setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING").upper())
        with _alone(self._uri):
            client = mlflow.MlflowClient(self._uri)
            if self.run_id is not None:
                try:
                    client.update_run(self.run_id, status="RUNNING")
                except MlflowException:
                    logger.warning("MLflow at %s does not know run %s; a new one begins", self._uri, self.run_id)
                    self.run_id = None
            if self.run_id is None:
                self._create(client, name, parameters)
        self._client = client
        if self._system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._uri)
            self._monitor.start()

    def _create(self, client: Any, name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            experiment_id = client.create_experiment(self._experiment, artifact_location=self._artifacts)
        else:
            experiment_id = experiment.experiment_id
        run = client.create_run(experiment_id, run_name=name, tags={"git": git_revision() or "none"})
        self.run_id = run.info.run_id
        temporary = self._memory.with_suffix(".json.new")
        temporary.write_text(json.dumps({"uri": self._uri, "run_id": self.run_id}), encoding="utf-8")
        os.replace(temporary, self._memory)
        rows = [Param(key, str(value)[:500]) for key, value in parameters.items()]
        for start in range(0, len(rows), 100):
            client.log_batch(self.run_id, params=rows[start : start + 100])

    def _log_metrics(self, values: Mapping[str, float], step: int, milliseconds: int) -> None:
        from mlflow.entities import Metric

        rows = [Metric(name, float(value), milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=rows)

    def _end(self, status: str) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        if self._client is not None:
            self._client.set_terminated(self.run_id, status=status)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time: runs that start together would each make the tables of a new SQLite file, and fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        # released when the file closes, also by a process that dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remembered_run(memory: Path, *, uri: str) -> str | None:
    """The run id that an earlier process of this run wrote down for the same store; None when there is none."""
    if not memory.exists():
        return None
    try:
        values = json.loads(memory.read_text(encoding="utf-8"))
        return values["run_id"] if values["uri"] == uri else None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); a new MLflow run begins", memory, error)
        return None

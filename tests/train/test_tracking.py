import json
import subprocess
import sys
import time

import mlflow
import numpy as np
import pytest

from tokenflow.train import EvalResult, Tracker, TrackingConfig, TrainConfig, TrainState, read_rows
from tokenflow.train.mlflow_writer import remembered_run

CONFIG = TrainConfig(steps=4, global_batch_size=1, micro_batch_size=1)


def track(output, *, first, last, uri=None, system_metrics=False, outcome="finished"):
    """The rows of steps first..last, as `fit` would give them."""
    config = TrackingConfig(uri=uri, system_metrics=system_metrics, experiment="tests")
    tracker = Tracker(output, config=config, name="tiny", recipe={"train": {"steps": 4}, "sizes": [1, 2]})
    state = TrainState(step=first - 1, samples=first - 1)
    tracker.open(state)
    tracker.started(state, CONFIG)
    for step in range(first, last + 1):
        state.step = state.samples = step
        tracker.stepped(state)
        tracker.logged(state, {"loss": 1 / step, "odd": float("nan")})
    image = np.full((8, 8, 3), 200, dtype=np.uint8)
    tracker.evaluated(state, EvalResult(metrics={"psnr": 20.0 + last}, images={"grid": image}, alarms=("grey",)))
    tracker.saving(state)
    tracker.finished(state, outcome)
    return tracker


def test_rows_are_json_with_steps_and_no_nan(tmp_path):
    track(tmp_path / "run", first=1, last=2, uri=f"sqlite:///{tmp_path}/other.db")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [("train", 1), ("train", 2), ("evaluation", 2)]
    assert rows[0]["loss"] == 1.0 and rows[0]["odd"] is None
    assert rows[2]["psnr"] == 22.0 and rows[2]["alarms"] == ["grey"]
    assert (tmp_path / "run" / "images" / "grid_00000002.png").is_file()


def test_a_resumed_run_repeats_no_step_and_continues_its_mlflow_run(tmp_path):
    track(tmp_path / "run", first=1, last=3, outcome="stopped")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "kind": "tra')
    track(tmp_path / "run", first=3, last=4)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tests")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.steps"] == "4"
    assert {metric.step for metric in client.get_metric_history(found.info.run_id, "loss")} == {1, 2, 3, 4}
    assert found.data.metrics["evaluation/psnr"] == 24.0
    assert client.list_artifacts(found.info.run_id, "images")
    assert json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"] == found.info.run_id


@pytest.mark.parametrize("text", ["", '{"uri": "sqli', "{}", "[]", "null"])
def test_a_damaged_memory_of_the_mlflow_run_begins_a_new_one(tmp_path, text, caplog):
    memory = tmp_path / "mlflow.json"
    memory.write_text(text)
    assert remembered_run(memory, uri="sqlite:///a.db") is None
    assert "mlflow.json is damaged" in caplog.text


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///{folder}/a_file/mlflow.db"])
def test_a_dead_store_costs_plots_and_not_the_run(tmp_path, uri, caplog):
    (tmp_path / "a_file").touch()
    began = time.monotonic()
    track(tmp_path / "run", first=1, last=4, uri=uri.format(folder=tmp_path))
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 5
    assert "metrics.jsonl" in caplog.text
    assert time.monotonic() - began < 100


START = """
import sys
from pathlib import Path
from tokenflow.train import Tracker, TrackingConfig, TrainState
tracker = Tracker(Path(sys.argv[1]), config=TrackingConfig(system_metrics=False, experiment="tests"), name="tiny")
state = TrainState()
tracker.open(state)
tracker.finished(state, "finished")
"""


def test_runs_that_start_together_share_a_new_store(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", START, str(tmp_path / str(number))]) for number in range(3)]
    assert [run.wait(120) for run in runs] == [0, 0, 0]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tests")
    assert len(client.search_runs([experiment.experiment_id])) == 3

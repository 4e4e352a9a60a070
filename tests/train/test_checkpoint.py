import json
import os

import pytest
import torch

from tests.train.launching import curve, run
from tests.train.tiny_run import NoiseLoader, Regression, RegressionTask
from tokenflow import train
from tokenflow.train import distributed
from tokenflow.train.checkpoint import Checkpoints
from tokenflow.train.checkpoint_files import find_problem


@pytest.fixture(scope="module", autouse=True)
def one_process():
    torch.set_num_threads(1)
    distributed.initialize()


class Losses(train.Hook):
    def __init__(self):
        self.rows = []

    def logged(self, state, metrics):
        self.rows.append((state.step, metrics["loss"], metrics["gradient_norm/model"]))


def train_to(
    folder, steps, *, stage=2, mode="auto", recipe=None, total=10, precision="fp32", save_every=0, evaluate_every=3
):
    """Train to a step and save, as a stop signal would; the losses on the way."""
    config = train.TrainConfig(
        steps=total, global_batch_size=8, micro_batch_size=4, log_every=1, ema_decay=0.9, precision=precision
    )
    engine = train.Engine(
        Regression if precision != "bf16" else lambda: Regression().bfloat16(),
        name="model",
        train=config,
        optimizer=train.OptimizerConfig(learning_rate=0.01),
        schedule=train.ScheduleConfig(kind="cosine", warmup_steps=2),
        deepspeed={"zero_optimization": {"stage": stage}},
        ema_decay=0.9,
    )
    engines, task, losses = {"model": engine}, RegressionTask(), Losses()
    checkpoints = Checkpoints(folder, recipe=recipe or {"train": config}, keep_last=2)
    state = checkpoints.resume(task, engines, mode=mode, seed=0)
    short = train.TrainConfig(
        steps=steps,
        global_batch_size=8,
        micro_batch_size=4,
        log_every=1,
        evaluate_every=evaluate_every,
        save_every=save_every,
    )
    loader = NoiseLoader(config, cursor=state.cursor)
    train.fit(task, engines, loader, state, [losses], short, checkpoints=checkpoints)
    return losses.rows, task, engine


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_equals_unbroken_run(tmp_path, stage):
    unbroken, task, engine = train_to(tmp_path / "unbroken", 10, stage=stage)
    rows = []
    for steps in (2, 3, 7, 10):
        part, resumed_task, resumed = train_to(tmp_path / "broken", steps, stage=stage)
        rows += part
    assert rows == unbroken
    assert resumed_task.seen == task.seen == 80
    for state in ("gathered_state_dict", "gathered_average"):
        one, two = getattr(engine, state)(), getattr(resumed, state)()
        assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_equals_unbroken_run_under_autocast(tmp_path, stage):
    unbroken, _, _ = train_to(tmp_path / "unbroken", 6, stage=stage, precision="bf16_autocast")
    first, _, _ = train_to(tmp_path / "broken", 3, stage=stage, precision="bf16_autocast")
    second, _, _ = train_to(tmp_path / "broken", 6, stage=stage, precision="bf16_autocast")
    assert first + second == unbroken


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path):
    arguments = ["--output", tmp_path, "--stages", 1, 3, "--save_every", 3, "--steps", 8]
    run(*arguments, world_size=2)
    unbroken = [curve(tmp_path / f"zero{stage}") for stage in (1, 3)]
    for stage in (1, 3):
        (tmp_path / f"zero{stage}" / "checkpoints" / "step_00000008" / "manifest.json").unlink()
    assert "step_00000008 is passed over" in run(*arguments, world_size=2)
    assert [curve(tmp_path / f"zero{stage}") for stage in (1, 3)] == unbroken


def test_a_checkpoint_holds_everything_it_promises(tmp_path):
    train_to(tmp_path, 2)
    folder = tmp_path / "checkpoints" / "step_00000002"
    assert (tmp_path / "checkpoints" / "latest").read_text() == folder.name
    for name in ("state.json", "recipe.yaml", "run.json", "manifest.json", "ranks/rank_00000.pt"):
        assert (folder / name).is_file(), name
    run_ = json.loads((folder / "run.json").read_text())
    assert {"git", "torch", "deepspeed", "python"} <= set(run_)
    assert json.loads((folder / "state.json").read_text())["state"]["cursor"] == {"samples": 16}
    assert find_problem(folder) is None


def test_only_the_last_checkpoints_are_kept(tmp_path):
    train_to(tmp_path, 7, save_every=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step_00000006", "step_00000007"]


@pytest.mark.parametrize("damage", ["short", "missing", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    train_to(tmp_path, 4, save_every=2)
    newest = tmp_path / "checkpoints" / "step_00000004"
    shard = next((newest / "engines" / "model" / "shards").iterdir())
    if damage == "short":
        os.truncate(shard, shard.stat().st_size - 1)
    elif damage == "missing":
        shard.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    rows, _, _ = train_to(tmp_path, 5)
    assert [step for step, _, _ in rows] == [3, 4, 5]
    assert "step_00000004 is passed over" in caplog.text


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    partial = tmp_path / "checkpoints" / ".partial_step_00000002"
    partial.mkdir(parents=True)
    (partial / "state.json").write_text("{")
    rows, _, _ = train_to(tmp_path, 1)
    assert not partial.exists()
    assert [step for step, _, _ in rows] == [1]


def test_another_recipe_is_an_error_that_names_the_keys(tmp_path):
    train_to(tmp_path, 1, recipe={"train": {"seed": 0, "log_every": 1}, "model": {"width": 3}})
    with pytest.raises(ValueError, match=r"model.width: 3 there, 4 here"):
        train_to(tmp_path, 2, recipe={"train": {"seed": 0, "log_every": 1}, "model": {"width": 4}})
    with pytest.raises(ValueError, match=r"train.seed: 0 there, 'absent' here"):
        train_to(tmp_path, 2, recipe={"train": {"log_every": 1}, "model": {"width": 3}})
    train_to(tmp_path, 2, recipe={"train": {"seed": 0, "log_every": 5}, "model": {"width": 3}})


def test_a_fresh_start_moves_older_checkpoints_aside(tmp_path):
    train_to(tmp_path, 2)
    rows, _, _ = train_to(tmp_path, 1, mode="none")
    assert [step for step, _, _ in rows] == [1]
    assert (tmp_path / "checkpoints_before_1" / "step_00000002").is_dir()


def test_keys_newer_than_the_checkpoint_are_a_warning(tmp_path, caplog):
    old = {"model": {"width": 3, "extra": None}, "data": {"prefetch_batches": 4}, "evaluation_images": 64}
    train_to(tmp_path, 1, recipe=old)
    newer = {"model": {"width": 3, "extra": None, "depth": 2}, "data": {"prefetch_batches": 2}, "evaluation_images": 8}
    train_to(tmp_path, 2, recipe=newer)
    assert "before the recipe had model.depth (now 2)" in caplog.text
    with pytest.raises(ValueError, match=r"model.extra.weight: 'absent' there, 1.0 here"):
        train_to(tmp_path, 3, recipe={**newer, "model": {"width": 3, "extra": {"weight": 1.0}, "depth": 2}})


def test_a_new_key_of_a_source_is_a_warning_and_a_new_source_an_error(tmp_path, caplog):
    train_to(tmp_path, 1, recipe={"data": {"sources": [{"path": "a"}]}})
    train_to(tmp_path, 2, recipe={"data": {"sources": [{"path": "a", "factor": 1.0}]}})
    assert "before the recipe had data.sources.0.factor (now 1.0)" in caplog.text
    with pytest.raises(ValueError, match=r"data.sources.length: 1 there, 2 here"):
        train_to(tmp_path, 3, recipe={"data": {"sources": [{"path": "a", "factor": 1.0}, {"path": "b"}]}})
    with pytest.raises(ValueError, match=r"data.sources.0.path: 'a' there, 'b' here"):
        train_to(tmp_path, 3, recipe={"data": {"sources": [{"path": "b", "factor": 1.0}]}})


def test_a_path_moves_this_runs_later_checkpoints_aside(tmp_path):
    train_to(tmp_path / "other", 1)
    train_to(tmp_path / "run", 5, save_every=1)
    (tmp_path / "run" / "metrics.jsonl").write_text("kept")
    train_to(tmp_path / "run", 2, mode=str(tmp_path / "other"))
    folder, aside = tmp_path / "run" / "checkpoints", tmp_path / "run" / "checkpoints_before_1"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000002"]
    assert sorted(path.name for path in aside.iterdir()) == ["metrics.jsonl", "step_00000004", "step_00000005"]
    assert (folder / "latest").read_text() == "step_00000002"
    assert Checkpoints(tmp_path / "run").find_latest() == folder / "step_00000002"
    rows, _, _ = train_to(tmp_path / "run", 3)
    assert [step for step, _, _ in rows] == [3]


def test_going_back_within_a_run_keeps_what_it_goes_back_to(tmp_path):
    train_to(tmp_path, 5, save_every=1)
    folder = tmp_path / "checkpoints"
    rows, _, _ = train_to(tmp_path, 5, mode=str(folder / "step_00000004"))
    assert [step for step, _, _ in rows] == [5]
    assert sorted(path.name for path in folder.glob("step_*")) == ["step_00000004", "step_00000005"]
    assert [path.name for path in (tmp_path / "checkpoints_before_1").iterdir()] == ["step_00000005"]


def test_the_checkpoint_just_written_is_never_pruned(tmp_path):
    train_to(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    for name in ("step_00000008", "step_00000009"):
        (folder / name).mkdir()
    train_to(tmp_path, 2)
    assert (folder / "step_00000002").is_dir()


def test_a_path_resumes_from_another_run(tmp_path):
    train_to(tmp_path / "one", 2)
    for name, path in {"a": "one", "b": "one/checkpoints", "c": "one/checkpoints/step_00000002"}.items():
        rows, _, _ = train_to(tmp_path / name, 3, mode=str(tmp_path / path))
        assert [step for step, _, _ in rows] == [3]
    with pytest.raises(ValueError, match="expected a checkpoint"):
        train_to(tmp_path / "two", 3, mode=str(tmp_path / "nothing"))


def test_another_zero_stage_is_an_error(tmp_path):
    train_to(tmp_path, 1, stage=1)
    with pytest.raises(ValueError, match="was written under ZeRO stage 1, this run uses stage 2"):
        train_to(tmp_path, 2, stage=2)


def test_evaluation_leaves_the_training_curve_alone(tmp_path):
    often, _, _ = train_to(tmp_path / "with", 6, evaluate_every=1)
    never, _, _ = train_to(tmp_path / "without", 6, evaluate_every=0)
    assert often == never

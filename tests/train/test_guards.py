import os
import signal

import pytest
import torch

from tests.train.tiny_run import NoiseLoader, Regression, RegressionTask
from tokenflow import train
from tokenflow.train import distributed
from tokenflow.train.checkpoint import Checkpoints


@pytest.fixture(scope="module", autouse=True)
def one_process():
    torch.set_num_threads(1)
    distributed.initialize()


class Recorder(train.Hook):
    """Keeps the weights after every step."""

    def __init__(self, engines):
        self.engines = engines
        self.weights = []

    def stepped(self, state):
        self.weights.append({name: engine.gathered_state_dict() for name, engine in self.engines.items()})


def train_regression(folder, *, stage, poison, save_every=0, steps=8, rollbacks=2, hooks=()):
    config = train.TrainConfig(
        steps=steps,
        global_batch_size=8,
        micro_batch_size=4,
        save_every=save_every,
        ema_decay=0.9,
        max_skipped_steps=2,
        max_rollbacks=rollbacks,
    )
    engine = train.Engine(
        Regression,
        name="model",
        train=config,
        optimizer=train.OptimizerConfig(learning_rate=0.01),
        deepspeed={"zero_optimization": {"stage": stage}},
        ema_decay=0.9,
    )
    engines = {"model": engine}
    task = RegressionTask(frozenset(poison))
    checkpoints = Checkpoints(folder, keep_last=9)
    state = checkpoints.resume(task, engines, mode="auto", seed=0)
    recorder = Recorder(engines)
    loader = NoiseLoader(config, cursor=state.cursor)
    train.fit(task, engines, loader, state, [recorder, *hooks], config, checkpoints=checkpoints)
    return recorder.weights, state


def same(one, two):
    return all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_non_finite_step_is_skipped_and_named(tmp_path, stage, caplog):
    weights, state = train_regression(tmp_path, stage=stage, poison=[3])
    assert same(weights[2], weights[3])
    assert not same(weights[3], weights[4])
    assert (state.skipped_steps, state.skipped_in_a_row, state.rollbacks) == (1, 0, 0)
    assert "step 3 skipped: not finite: loss, gradient of model" in caplog.text


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_persistent_non_finite_steps_roll_back_and_the_data_goes_on(tmp_path, stage, caplog):
    weights, state = train_regression(tmp_path, stage=stage, poison=[4, 5], save_every=3)
    assert same(weights[5], weights[2])
    assert not same(weights[6], weights[5])
    assert (state.step, state.samples, state.cursor) == (8, 64, {"samples": 64})
    assert (state.skipped_steps, state.rollbacks) == (2, 1)
    assert "rolled back to step_00000003" in caplog.text


def test_repeated_rollbacks_end_in_an_error_that_names_the_term(tmp_path):
    with pytest.raises(train.NonFiniteError, match=r"loss.*1 rollbacks did not help"):
        train_regression(tmp_path, stage=2, poison=range(2, 9), save_every=1, rollbacks=1)


def test_without_a_checkpoint_persistent_non_finite_steps_are_an_error(tmp_path):
    with pytest.raises(train.NonFiniteError, match="no checkpoint yet to roll back to"):
        train_regression(tmp_path, stage=1, poison=[0, 1])


class SignalAt(train.Hook):
    """Sends this process a signal after a step."""

    def __init__(self, step, number):
        self.step = step
        self.number = number

    def stepped(self, state):
        if state.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_a_second_start_equals_the_unbroken_run(tmp_path, number):
    handler = signal.getsignal(number)
    unbroken, _ = train_regression(tmp_path / "unbroken", stage=1, poison=[])
    before, state = train_regression(tmp_path / "stopped", stage=1, poison=[], hooks=[SignalAt(3, number)])
    assert state.step == 4 and len(before) == 4
    assert signal.getsignal(number) == handler
    after, state = train_regression(tmp_path / "stopped", stage=1, poison=[])
    assert state.step == 8 and len(after) == 4
    assert all(same(one, two) for one, two in zip(unbroken, before + after, strict=True))

"""SIGKILL at random moments, also while a checkpoint is being written: the losses are those of the unbroken run."""

import random
import time

import pytest
import torch

from tests.train.launching import curve, run, start, wait_until
from tokenflow.train import read_rows

STEPS = 60
ARGUMENTS = ["--steps", STEPS, "--save_every", 2, "--evaluate_every", 15, "--task", "gan", "--start", 5]


def kill_somewhere(folder, process, chance, *, while_saving):
    """Let the run get on a little, then SIGKILL it, at a step or in the middle of a checkpoint."""
    done = len(read_rows(folder / "metrics.jsonl"))
    goal = min(STEPS - 4, done + chance.randint(1, 8))
    wait_until(lambda: len(read_rows(folder / "metrics.jsonl")) >= goal, process)
    if while_saving:
        wait_until(lambda: any((folder / "checkpoints").glob(".partial_*")), process)
    time.sleep(chance.uniform(0, 0.02))
    process.kill()
    process.communicate()


def check_kills(folder, *, kills, stage):
    chance = random.Random(kills)
    arguments = [*ARGUMENTS, "--stages", stage]
    run("--output", folder / "unbroken", *arguments)
    for number in range(kills):
        (process,) = start("--output", folder / "killed", *arguments, "--pause", 0.01)
        kill_somewhere(folder / "killed", process, chance, while_saving=number % 2 == 1)
    run("--output", folder / "killed", *arguments)
    for term in ("reconstruction", "adversarial", "discriminator"):
        unbroken = curve(folder / "unbroken", term)
        assert len(unbroken) == STEPS
        assert curve(folder / "killed", term) == unbroken
    one, two = (torch.load(folder / name / "final.pt", weights_only=True) for name in ("unbroken", "killed"))
    assert one["state"] == two["state"]
    for kind in ("weights", "averages"):
        for engine, weights in one[kind].items():
            assert all(torch.equal(value, two[kind][engine][name]) for name, value in weights.items())


def test_three_kills_end_in_the_unbroken_runs_losses(tmp_path):
    check_kills(tmp_path, kills=3, stage=1)


@pytest.mark.slow
def test_ten_kills_end_in_the_unbroken_runs_losses(tmp_path):
    check_kills(tmp_path, kills=10, stage=3)

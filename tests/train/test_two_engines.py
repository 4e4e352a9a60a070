"""A generator and a discriminator in one process, under every ZeRO stage, on one and two processes.

The runs include a discriminator that starts later, an adaptive adversarial weight and a step that is not finite.
"""

import pytest
import torch

from tests.train.launching import curve, run

STEPS = 10
POISONED = 5
TERMS = ("reconstruction", "adversarial", "discriminator", "gradient_norm/generator")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan")
    arguments = ["--task", "gan", "--stages", 0, 1, 2, 3, "--start", 2, "--steps", STEPS, "--poison", POISONED]
    # The same micro-batches of four: by accumulation on one process, side by side on two.
    run("--output", folder / "one", "--micro_batch", 4, *arguments, world_size=1)
    run("--output", folder / "two", "--micro_batch", 4, *arguments, world_size=2)
    return folder


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("term", TERMS)
def test_two_processes_reach_the_curve_of_one(runs, stage, term):
    one, two = curve(runs / "one" / "zero0", term), curve(runs / "two" / f"zero{stage}", term)
    assert len(one) == len(two) == STEPS
    for first, second in zip(one, two, strict=True):
        assert second == (None if first is None else pytest.approx(first, abs=2e-6))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["weights", "averages"])
def test_two_processes_reach_the_weights_and_averages_of_one(runs, stage, kind):
    one = torch.load(runs / "one" / "zero0" / "final.pt", weights_only=True)[kind]
    two = torch.load(runs / "two" / f"zero{stage}" / "final.pt", weights_only=True)[kind]
    for engine in ("generator", "discriminator"):
        assert set(one[engine]) == set(two[engine])
        for name, value in one[engine].items():
            # Running statistics see other batches: one after the other on one process, its own on each of two.
            if "running" not in name and "num_batches" not in name:
                torch.testing.assert_close(two[engine][name], value, atol=2e-6, rtol=1e-5)


def test_the_discriminator_learns_only_after_its_start(runs):
    discriminator = curve(runs / "one" / "zero2", "discriminator")
    assert discriminator[:2] == [0.0, 0.0]
    assert 0.0 not in discriminator[2:]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_both_engines_skip_a_step_in_which_one_is_not_finite(runs, stage):
    folder = runs / "two" / f"zero{stage}"
    assert curve(folder, "adversarial")[POISONED] is None
    assert curve(folder, "reconstruction")[POISONED] is not None
    assert curve(folder, "skipped_steps") == [0.0] * POISONED + [1.0] * (STEPS - POISONED)

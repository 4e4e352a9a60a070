"""A checkpoint goes on at another number of ranks, with the same data and schedule."""

import pytest

from tests.train.launching import curve, run

pytestmark = pytest.mark.slow

ARGUMENTS = ["--task", "gan", "--stages", 0, 1, 2, 3, "--save_every", 5]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_at_another_number_of_ranks(tmp_path, before, after):
    run("--output", tmp_path / "unbroken", *ARGUMENTS[:2], "--steps", 10)
    run("--output", tmp_path / "elastic", *ARGUMENTS, "--steps", 10, "--stop_at", 5, world_size=before)
    run("--output", tmp_path / "elastic", *ARGUMENTS, "--steps", 10, world_size=after)
    for stage in range(4):
        for term in ("reconstruction", "adversarial", "discriminator", "learning_rate/generator"):
            resumed = curve(tmp_path / "elastic" / f"zero{stage}", term)
            assert resumed == pytest.approx(curve(tmp_path / "unbroken", term), abs=1e-4), (stage, term)

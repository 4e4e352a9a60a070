"""A checkpoint goes on at half or double the ranks, with the same global batch, data and schedule."""

import pytest

from tests.train.launching import curve, run

pytestmark = pytest.mark.slow

STEPS, STOP, BATCH = 8, 4, 8
TERMS = ("reconstruction", "adversarial", "discriminator")
SHARED = ("--task", "gan", "--steps", STEPS, "--batch", BATCH, "--save_every", STOP, "--journal")


def samples_by_step(folder, world_size):
    """Which samples each step took, over all ranks, in rank order."""
    steps = {}
    for rank in range(world_size):
        for line in (folder / f"journal_{rank}_of_{world_size}").read_text().splitlines():
            step, writer, first, size = map(int, line.split())
            assert writer == rank
            steps.setdefault(step, []).extend(range(first, first + size))
    return steps


@pytest.mark.parametrize(
    ("before", "after", "micro_batch", "stages"),
    [(2, 1, 4, (0, 1, 2, 3)), (1, 2, 4, (0, 1, 2, 3)), (4, 2, 2, (1, 2, 3)), (2, 4, 2, (1, 2, 3))],
    ids=["2-to-1", "1-to-2", "4-to-2", "2-to-4"],
)
def test_a_run_goes_on_at_another_number_of_ranks(tmp_path, before, after, micro_batch, stages):
    shared = (*SHARED, "--micro_batch", micro_batch)
    run("--output", tmp_path / "unbroken", *shared)
    elastic = ("--output", tmp_path / "elastic", *shared, "--stages", *stages)
    run(*elastic, "--stop_at", STOP, world_size=before)
    run(*elastic, world_size=after)
    expected = samples_by_step(tmp_path / "unbroken", 1)
    assert expected == {step: list(range(step * BATCH, (step + 1) * BATCH)) for step in range(STEPS)}
    for stage in stages:
        folder = tmp_path / "elastic" / f"zero{stage}"
        first, second = samples_by_step(folder, before), samples_by_step(folder, after)
        assert sorted(first) == list(range(STOP)) and sorted(second) == list(range(STOP, STEPS))
        assert {**first, **second} == expected, stage
        for network in ("generator", "discriminator"):
            rate = f"learning_rate/{network}"
            assert curve(folder, rate) == curve(tmp_path / "unbroken", rate), stage
        for term in TERMS:
            assert curve(folder, term) == pytest.approx(curve(tmp_path / "unbroken", term), abs=1e-4), (stage, term)


def test_ranks_among_which_the_global_batch_does_not_divide_are_refused_with_a_way_out(tmp_path):
    shared = ("--output", tmp_path, *SHARED, "--stages", 2)
    run(*shared, "--micro_batch", 8, "--stop_at", STOP)
    refused = run(*shared, "--micro_batch", 8, world_size=2, expected=1)
    assert "global_batch_size 8 does not divide into 2 ranks with micro_batch_size 8. Use micro_batch_size 4" in refused
    run(*shared, "--micro_batch", 4, world_size=2)
    assert sorted(samples_by_step(tmp_path, 2)) == list(range(STOP, STEPS))

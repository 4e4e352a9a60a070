"""A rank that no longer answers is named by the others, which end instead of waiting for ever."""

import signal

import pytest

from tests.train.launching import run, start, wait_until
from tokenflow.train import EXIT_HUNG, TrainConfig, read_rows
from tokenflow.train.pulse import Pulse, find_behind, find_silent, moved, read_pulses, write_pulse

SECONDS = 12.0
"""A rank that gets no processor for half of that counts as silent."""


def pulse(**values):
    given = {"host": "node1", "pid": 1, "beat": 1, "progress": 10, "step": 3, "phase": "computing", "slow": False}
    return Pulse(**{**given, **values})


def test_a_rank_that_does_not_beat_is_silent_and_its_place_is_told():
    first = [pulse(beat=4), pulse(beat=4, phase="loading"), pulse(beat=4)]
    second = [pulse(beat=9), first[1], pulse(beat=9)]
    (finding,) = find_silent(first, second)
    assert finding.rank == 1 and not finding.running
    assert "node1" in finding.reason and "step 3, loading" in finding.reason


def test_a_rank_that_ended_by_itself_is_named_and_one_that_lost_the_others_is_not():
    now = [pulse(beat=2), pulse(ended="ValueError: bad"), pulse(ended="RuntimeError: gloo", lost_others=True), None]
    found = find_silent([pulse()] * 4, now)
    assert [finding.rank for finding in found] == [1, 3]
    assert "ValueError: bad" in found[0].reason


@pytest.mark.parametrize(
    ("pulses", "behind"),
    [
        ([pulse(progress=11, waiting=True), pulse(progress=10, waiting=True), pulse(progress=11)], [1]),
        ([pulse(waiting=True), pulse(waiting=True), pulse()], [2]),
        ([pulse(waiting=True), pulse(waiting=True)], []),
        ([pulse(), pulse()], []),
        ([pulse(progress=11), pulse(progress=9, ended="finished")], []),
        ([pulse(progress=11, waiting=True, ended="gave up", lost_others=True), pulse(progress=10)], [1]),
        ([pulse(waiting=True, ended="gave up", lost_others=True), pulse()], [1]),
        ([pulse(progress=11, waiting=True), pulse(ended="gave up", lost_others=True)], []),
    ],
)
def test_the_rank_furthest_behind_or_alone_outside_a_collective_holds_up_the_others(pulses, behind):
    assert [finding.rank for finding in find_behind(pulses)] == behind


def test_only_a_main_thread_that_goes_on_counts_as_moving():
    assert not moved([pulse(beat=1), pulse(beat=1)], [pulse(beat=9), pulse(beat=9)])
    assert moved([pulse(), pulse()], [pulse(), pulse(progress=11)])


def test_pulses_survive_the_way_to_disk_and_back(tmp_path):
    written = pulse(place="a.py:1 f", ended="finished")
    write_pulse(tmp_path, 1, written)
    assert read_pulses(tmp_path, 3) == [None, written, None]


def test_more_time_than_a_collective_has_is_refused():
    with pytest.raises(ValueError, match="expected 0 \\(off\\) to 15"):
        TrainConfig(steps=1, global_batch_size=4, micro_batch_size=4, hang_minutes=20)


def hung_run(folder, *options, world_size, victim=None, action=None):
    """Start a run, do something to one rank once it trains, wait for the others; their codes and words by rank."""
    arguments = ["--output", folder, "--steps", 100_000, "--hang_minutes", SECONDS / 60, "--micro_batch", 2, *options]
    processes = start(*arguments, world_size=world_size)
    try:
        if action is not None:
            wait_until(lambda: len(read_rows(folder / "metrics.jsonl")) >= 3, processes[0])
            processes[victim].send_signal(action)
        ended = {}
        for rank, process in enumerate(processes):
            if rank != victim:
                output, _ = process.communicate(timeout=120)
                ended[rank] = (process.returncode, output)
        return ended
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_stopped_rank_is_named_by_the_others(tmp_path, world_size):
    victim = world_size - 1
    ended = hung_run(tmp_path, world_size=world_size, victim=victim, action=signal.SIGSTOP)
    assert len(ended) == world_size - 1
    named = [output for _, output in ended.values() if f"because of rank {victim}: it" in output]
    assert any("is stopped (SIGSTOP or a debugger)" in output for output in named), ended
    assert len(named) == len(ended), ended
    assert EXIT_HUNG in [code for code, _ in ended.values()]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_that_sleeps_in_its_loader_is_named_by_the_others_and_by_itself(tmp_path, world_size):
    ended = hung_run(tmp_path, "--sleep_at", 1, 3, world_size=world_size)
    for rank, (_, output) in ended.items():
        this = " (this one)" if rank == 1 else ""
        assert f"because of rank 1{this}: it" in output, output[-3000:]
        assert "step 3, loading, at tiny_run.py" in output, output[-3000:]
    assert ended[1][0] == EXIT_HUNG and "__next__" in ended[1][1]
    # Another rank ends by its own watch, or by the connection that rank 1 takes with it: whichever comes first.
    assert 0 not in [code for code, _ in ended.values()]


@pytest.mark.slow
def test_a_killed_rank_is_named_without_waiting(tmp_path):
    ((code, output),) = hung_run(tmp_path, world_size=2, victim=1, action=signal.SIGKILL).values()
    assert code != 0
    assert "because of rank 1: it" in output and "is dead" in output


@pytest.mark.slow
def test_a_run_in_which_nothing_hangs_ends_well_though_one_rank_evaluates_for_longer(tmp_path):
    slow = ("--pause", 1.0, "--evaluate_every", 2, "--evaluation_pause", 1.6 * SECONDS)
    run("--output", tmp_path, "--steps", 3, "--hang_minutes", SECONDS / 60, *slow, world_size=2)
    assert [found.ended for found in read_pulses(tmp_path / "heartbeats", 2)] == ["finished"] * 2

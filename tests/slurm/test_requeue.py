"""Jobs end early in every way there is, and go on where they were; what cannot go on stops and says so."""

import os
import random

import pytest

from tests.slurm.chaos import kill_randomly
from tests.slurm.cluster import Job
from tests.slurm.runs import STEPS, generate, last_step
from tests.train.launching import curve
from tokenflow.train import EXIT_STOPPED

TERMS = ("loss", "accuracy")
KILLS = int(os.environ.get("TOKENFLOW_KILLS", "3"))
"""Ten of them take about six minutes."""


def assert_same(output, reference):
    for term in TERMS:
        assert len(curve(output, term)) == STEPS
        assert curve(output, term) == curve(reference, term), term
    assert (output / "model").is_dir()


def make_way(cluster):
    """A more urgent job on all nodes comes and goes."""
    everything = (f"--nodes={len(cluster.nodes)}", "--exclusive", "--partition=urgent", "--output=/dev/null")
    Job(cluster, cluster.command("sbatch", "--parsable", *everything, "--wrap=sleep 1")).end()


def test_options_that_a_pipeline_refuses_end_the_job_at_once(cluster, tmp_path):
    job = cluster.submit("stage1_tokenizer.sh", "--train.stepps", 3, RECIPE="nano", OUTPUT=tmp_path / "run")
    fields = job.end("FAILED", seconds=60).fields()
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    assert "unknown option --train.stepps" in job.output


@pytest.mark.slow
def test_two_nodes_reach_the_curve_of_one(cluster, world, barely_trained, two_nodes, tmp_path):
    generate(cluster, world, barely_trained, tmp_path / "one").end()
    for term in TERMS:
        assert curve(two_nodes, term) == pytest.approx(curve(tmp_path / "one", term), rel=2e-4, abs=1e-6), term


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_goes_on_in_the_next_one(cluster, world, barely_trained, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    endless = {"steps": 100_000}
    warned = ("--signal=B:USR1@1",)
    every = ("--train.save_every", 100_000)
    job = generate(cluster, world, barely_trained, short, *every, options=warned, **endless)
    reference = generate(cluster, world, barely_trained, long, *every, **endless)
    # The limit comes near only now: a job that is slow to begin would reach one of a minute without a step.
    job.until(lambda: last_step(short) > 0)
    job.update("EndTime=now+50")
    job.until(lambda: job.restarts == 1)
    job.update("TimeLimit=60")
    stopped = int((short / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert 0 < stopped == last_step(short)
    assert "stopped by a signal, and saved" in job.output
    job.until(lambda: last_step(short) >= stopped + 20)
    steps = last_step(short)
    reference.until(lambda: last_step(long) >= steps)
    cluster.command("scancel", job.number, reference.number)
    for term in TERMS:
        assert curve(short, term)[:steps] == curve(long, term)[:steps], term


@pytest.mark.slow
def test_a_cancelled_job_saves_stays_cancelled_and_goes_on_when_submitted_again(
    cluster, world, barely_trained, two_nodes, tmp_path
):
    output = tmp_path / "run"
    job = generate(cluster, world, barely_trained, output, nodes=2)
    job.until(lambda: last_step(output) >= 5)
    cluster.command("scancel", job.number)
    job.end("CANCELLED")
    cluster.wait_for(lambda: not cluster.command("squeue", "--noheader"), "the job to be gone", seconds=20)
    assert job.restarts == 0
    saved = int((output / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert saved == last_step(output) < STEPS
    again = generate(cluster, world, barely_trained, output, nodes=2).end()
    assert f"begins at step {saved}" in again.output
    assert_same(output, two_nodes)


@pytest.mark.slow
def test_a_node_that_dies_is_replaced_and_the_job_goes_on(cluster, world, barely_trained, two_nodes, tmp_path):
    output = tmp_path / "run"
    job = generate(cluster, world, barely_trained, output, nodes=2)
    job.until(lambda: last_step(output) >= 5)
    dead = job.hosts[-1]
    cluster.crash_node(dead)
    job.until(lambda: job.restarts == 1 and job.state == "RUNNING", seconds=120)
    assert dead not in job.hosts
    job.end()
    assert_same(output, two_nodes)


@pytest.mark.slow
def test_a_job_that_makes_way_for_a_more_urgent_one_saves_and_goes_on(
    cluster, world, barely_trained, two_nodes, tmp_path
):
    output = tmp_path / "run"
    # One attempt without progress ends a job, except where it made way for another.
    job = generate(cluster, world, barely_trained, output, nodes=2, STUCK_AFTER=1)
    job.until(lambda: "attempt 1 begins" in job.output)
    make_way(cluster)
    job.until(lambda: last_step(output) >= 5)
    assert "goes back into the queue at the start" in job.output
    assert job.fields()["PreemptTime"] == "None"
    make_way(cluster)
    # More often where nodes are slow to be free: a job that fits into the others begins while the urgent one waits.
    assert job.restarts >= 2
    assert "stopped by a signal, and saved" in job.output
    job.end()
    assert_same(output, two_nodes)


@pytest.mark.slow
def test_random_kills_of_ranks_and_nodes_end_in_the_unbroken_runs_losses(
    cluster, world, barely_trained, two_nodes, tmp_path
):
    # Several kills may fall between two checkpoints: that is no run that cannot get further.
    patient = {"STUCK_AFTER": KILLS + 1}
    job = generate(cluster, world, barely_trained, tmp_path / "run", nodes=2, **patient)
    done = kill_randomly(cluster, job, tmp_path / "run", kills=KILLS, steps=STEPS, chance=random.Random(3))
    print("\n".join(done))
    job.end()
    assert_same(tmp_path / "run", two_nodes)


@pytest.mark.slow
def test_a_run_that_cannot_get_further_stops_and_says_so(cluster, world, barely_trained, tmp_path):
    hopeless = ("--optimizer.learning_rate", 1e30, "--train.max_skipped_steps", 1, "--train.max_rollbacks", 0)
    job = generate(cluster, world, barely_trained, tmp_path / "run", *hopeless)
    job.end("FAILED")
    assert job.restarts == 1
    assert "2 attempts in a row began at the start and got no further" in job.output
    assert int(job.fields()["ExitCode"].split(":")[0]) not in (0, EXIT_STOPPED)

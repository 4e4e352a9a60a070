"""All stages as a chain of jobs, submitted by `submit_all.sh`."""

import os
import re
import signal

import pytest
import yaml

from tests.pipelines.world import DECODER, decoder_options, generator_options, tokenizer_options
from tests.slurm.cluster import SMALL, Job
from tests.slurm.runs import conversation_options, only_smaller
from tokenflow import ImageToText, TextToImage

STEPS = 4


def submit_all(cluster, runs, **environment):
    """The jobs of the chain, by stage."""
    size = ("--nodes=1", "--ntasks-per-node=1", f"--output={cluster.folder}/log/job-%j.out")
    given = {"RUNS": runs, **environment}
    printed = cluster.command(
        "slurm/submit_all.sh", *SMALL, *size, environment={name: str(value) for name, value in given.items()}
    )
    return {int(stage): Job(cluster, job) for stage, job in re.findall(r"stage (\d): job (\d+)", printed)}


def words(options):
    """Options as one variable holds them."""
    return " ".join(str(option).replace(" ", "") for option in options)


@pytest.mark.slow
def test_each_stage_begins_with_what_the_one_before_made_also_when_that_was_killed(
    cluster, world, talk, language, tmp_path
):
    runs = tmp_path / "runs"
    tokenizer, decoder, generator = (
        only_smaller(make(world, *given, steps=STEPS))
        for make, given in ((tokenizer_options, ("",)), (decoder_options, ("", "")), (generator_options, ("", "")))
    )
    conversations = conversation_options(steps=STEPS)
    options = {1: tokenizer, 2: decoder, 3: generator, 4: conversations, 5: conversations}
    jobs = submit_all(
        cluster,
        runs,
        **{f"STAGE{stage}_RECIPE": "nano" for stage in options},
        **{f"STAGE{stage}_OPTIONS": words(given) for stage, given in options.items()},
        PICTURES=world / "train",
        ALIGN_IMAGES=world / "train",
        LANGUAGE=language,
        ALIGN_DATA=talk / "captions.jsonl",
        TUNE_DATA=talk / "questions.jsonl",
    )
    assert list(jobs) == [1, 2, 3, 4, 5]
    jobs[2].until(lambda: bool(jobs[2].processes(DECODER)))
    os.kill(jobs[2].processes(DECODER)[0], signal.SIGKILL)
    fields = {stage: job.end().fields() for stage, job in jobs.items()}
    assert [fields[stage]["Restarts"] for stage in jobs] == ["0", "1", "0", "0", "0"]
    for stage, before in ((2, 1), (3, 2), (4, 2), (5, 4)):
        assert fields[stage]["StartTime"] >= fields[before]["EndTime"]
    recipes = {stage: yaml.safe_load((runs / f"stage{stage}" / "recipe.yaml").read_text()) for stage in jobs}
    assert recipes[2]["tokenizer"] == f"{runs}/stage1/model"
    assert {recipes[stage]["tokenizer"] for stage in (3, 4, 5)} == {f"{runs}/stage2/model"}
    assert recipes[5]["continue_from"] == f"{runs}/stage4/model"
    TextToImage.from_pretrained(runs / "stage3" / "model")
    ImageToText.from_pretrained(runs / "stage5" / "model")


def test_when_a_stage_fails_those_behind_it_are_cancelled(cluster, tmp_path):
    jobs = submit_all(cluster, tmp_path / "runs", STAGES="1 2 3", STAGE1_OPTIONS="--train.stepps 3")
    jobs[1].end("FAILED", seconds=60)
    for stage in (2, 3):
        assert jobs[stage].end("CANCELLED", seconds=60).fields()["Reason"] == "DependencyNeverSatisfied"

"""A stage's run, stopped on one process, goes on with two: the same pictures, captions, schedule and losses."""

import pytest

from tests.pipelines.world import CONFIGS, GENERATOR, generator_options
from tests.train.launching import curve, run, stop
from tokenflow.train import find_checkpoint
from tokenflow.train.checkpoint_files import step_of

pytestmark = pytest.mark.slow

QUIET = ("--tracking.mlflow", "false")


@pytest.mark.parametrize("stage", [2, 3])
def test_a_generator_goes_on_with_two_processes(world, barely_trained, tmp_path, stage):
    config = ("--ds_config", CONFIGS / f"zero{stage}.json", *QUIET)
    one, two = (
        [*generator_options(world, barely_trained, tmp_path / name), *config] for name in ("unbroken", "elastic")
    )
    run(*one, module=GENERATOR)
    stop(*two, folder=tmp_path / "elastic", module=GENERATOR)
    assert step_of(find_checkpoint(tmp_path / "elastic")) < 6
    run(*two, world_size=2, module=GENERATOR)
    for kind in ("train", "evaluation"):
        for term in ("loss", "loss/scale_1", "loss/scale_8"):
            expected = curve(tmp_path / "unbroken", term, kind)
            assert curve(tmp_path / "elastic", term, kind) == pytest.approx(expected, rel=2e-3, abs=1e-6), (kind, term)
    rate = "learning_rate/generator"
    assert curve(tmp_path / "elastic", rate) == curve(tmp_path / "unbroken", rate)

"""A chain of stages passes over what has finished."""

import shutil

import pytest

from pipelines.stages import FinishedStages

WORLD = {"kind": "shapes", "version": 2}


def asked(stage, recipe="steps: 3"):
    return {"command": ["-m", f"pipelines.{stage}"], "recipe": recipe}


def run(folder, *, recipes=("steps: 3",) * 3, world=WORLD):
    """The stages that a chain of three ran."""
    finished = FinishedStages(folder / "finished.json")
    finished.keep_to(world)
    ran = []
    for stage, recipe in zip("abc", recipes, strict=True):
        made = folder / stage / "model"
        if not finished.include(made, asked(stage, recipe)):
            made.mkdir(parents=True, exist_ok=True)
            finished.add(made, asked(stage, recipe))
            ran.append(stage)
    return ran


def test_what_finished_is_passed_over(tmp_path):
    assert run(tmp_path) == ["a", "b", "c"]
    assert run(tmp_path) == []


def test_a_stage_whose_output_is_gone_runs_again_and_so_do_those_after_it(tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "b")
    assert run(tmp_path) == ["b", "c"]
    assert run(tmp_path) == []


def test_a_stage_with_another_recipe_runs_again_and_so_do_those_after_it(tmp_path):
    run(tmp_path)
    changed = ("steps: 3", "steps: 4", "steps: 3")
    assert run(tmp_path, recipes=changed) == ["b", "c"]
    assert run(tmp_path, recipes=changed) == []


def test_a_chain_that_was_cut_off_goes_on_at_the_first_stage_that_had_not_finished(tmp_path):
    finished = FinishedStages(tmp_path / "finished.json")
    finished.keep_to(WORLD)
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    finished.add(tmp_path / "a" / "model", asked("a"))
    assert run(tmp_path) == ["b", "c"]


def test_stages_of_another_world_are_refused_with_both_named(tmp_path):
    run(tmp_path)
    with pytest.raises(SystemExit, match=r"'version': 2.* are .*'version': 3.* now. Remove "):
        run(tmp_path, world={**WORLD, "version": 3})
    assert run(tmp_path) == []

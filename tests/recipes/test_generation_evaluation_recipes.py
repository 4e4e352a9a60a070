"""The recipes of text-to-image evaluation parse and say what their benchmarks ask for."""

import pytest

from tests.recipes.command_lines import complaint
from tokenflow.config import RECIPES, load_recipe, parse
from tokenflow.tasks.generation_evaluation_recipe import GenerationEvaluationRecipe


def load(name):
    return load_recipe(GenerationEvaluationRecipe, RECIPES / "gen_eval" / f"{name}.yaml")


def test_there_is_a_recipe_for_the_built_in_world_and_each_benchmark():
    assert {path.stem for path in (RECIPES / "gen_eval").glob("*.yaml")} == {"nano", "geneval", "dpg"}


def test_nano_compares_single_and_multi_step_at_several_strengths_of_guidance():
    recipe = load("nano")
    assert recipe.of == "shapes" and recipe.sampling.guidance_scale in recipe.shapes.guidance_scales
    assert {"single-step", "three-step"} <= set(recipe.shapes.steps) and len(recipe.shapes.guidance_scales) >= 3


@pytest.mark.parametrize("name", ["geneval", "dpg"])
def test_benchmarks_sample_as_the_paper_with_four_pictures_of_every_prompt(name):
    recipe = load(name)
    assert recipe.of == name and recipe.benchmark.images_per_prompt == 4 and recipe.benchmark.count is None
    assert (recipe.sampling.steps, recipe.sampling.guidance_scale) == ("three-step", 7.5)
    assert recipe.sampling.guidance == "linear"


def test_the_command_line_names_model_and_prompts():
    argv = ["--recipe", "geneval", "--model", "m", "--benchmark.prompts", "p.jsonl", "--benchmark.count", "3"]
    recipe = parse(GenerationEvaluationRecipe, argv, stage="gen_eval", description="").recipe
    assert (recipe.model, recipe.benchmark.prompts, recipe.benchmark.count) == ("m", "p.jsonl", 3)
    assert recipe.rewriting.by == "nobody"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sampling.steps", "five-step"), "five-step"),
        (("--sampling.guidance_scale", "-2"), "guidance_scale is -2.0; expected 0"),
        (("--of", "geneval"), "give --benchmark.prompts"),
        (("--shapes.prompts_per_kind", "0"), "prompts_per_kind is 0; expected at least 1"),
    ],
)
def test_values_that_make_no_sense_end_the_command_line(options, words, capsys):
    argv = ["--recipe", "nano", *options]
    assert words in complaint(capsys, GenerationEvaluationRecipe, argv, stage="gen_eval")

"""The ImageNet recipes fix the paper's protocol, and take tokenizer and pictures from the command line."""

import pytest

from tokenflow.config import RECIPES, load_recipe, parse
from tokenflow.tasks.tokenizer_evaluation import EvaluationRecipe
from tokenflow.tokenizer.presets import preset

SIZES = {224: "tokenflow-b", 256: "tokenflow-l", 384: "tokenflow-xl"}


def test_there_is_a_recipe_for_each_size_of_the_paper():
    shipped = {path.stem for path in (RECIPES / "tokenizer_eval").glob("*.yaml")}
    assert shipped == {f"imagenet-{size}" for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_an_imagenet_recipe_fixes_size_number_and_rounding(size):
    recipe = load_recipe(EvaluationRecipe, RECIPES / "tokenizer_eval" / f"imagenet-{size}.yaml")
    assert recipe.name == f"imagenet-{size}"
    assert recipe.image_size == size == preset(SIZES[size]).image_size
    assert SIZES[size] in recipe.tokenizer
    assert recipe.data.count == 50_000
    assert (recipe.rounding, recipe.reference_rounding) == ("trunc", "floor")


def test_the_command_line_names_tokenizer_and_pictures():
    argv = ["--recipe", "imagenet-256", "--tokenizer", "somewhere/model", "--data", "/data/imagenet/val"]
    recipe = parse(EvaluationRecipe, argv, stage="tokenizer_eval", description="").recipe
    assert recipe.tokenizer == "somewhere/model" and recipe.image_size == 256
    assert [source.path for source in recipe.data.sources] == ["/data/imagenet/val"]
    assert recipe.data.count == 50_000 and recipe.data.num_workers == 8

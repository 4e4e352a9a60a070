"""The recipes of stages 4 and 5 follow LLaVA-1.5 and the paper, and can be planned without data or weights."""

from pathlib import Path

import pytest

from tests.recipes.command_lines import complaint
from tokenflow.config import RECIPES, Launch, load_recipe, parse
from tokenflow.tasks.understanding_evaluation import UnderstandingEvaluationRecipe
from tokenflow.tasks.understanding_plan import plan
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.understanding.presets import PRESETS

LAUNCH = Launch(output=Path("run"), ds_config=None, resume="auto", init_from=None, dry_run=True)
PAPER = sorted(set(PRESETS) - {"nano"})
LANGUAGE = {"vicuna-13b": "13,015,864,320", "qwen2.5-14b": "14,770,033,664"}


def load(stage, name):
    return load_recipe(UnderstandingRecipe, RECIPES / stage / f"{name}.yaml")


@pytest.mark.parametrize("stage", ["mllm_align", "mllm_sft"])
def test_every_preset_has_a_recipe(stage):
    extra = {"nano-names", "nano-corners", "nano-sides"} if stage == "mllm_sft" else set()
    assert {path.stem for path in (RECIPES / stage).glob("*.yaml")} == set(PRESETS) | extra


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_sized_stages_are_llavas(name):
    align, tune = load("mllm_align", name), load("mllm_sft", name)
    for recipe, rate, batch in ((align, 1e-3, 256), (tune, 2e-5, 128)):
        assert (recipe.optimizer.learning_rate, recipe.train.global_batch_size) == (rate, batch)
        assert (recipe.schedule.kind, recipe.schedule.warmup_ratio, recipe.train.precision) == ("cosine", 0.03, "bf16")
        assert recipe.model.preset == name and recipe.data.grouping == "modality_and_length"
    assert (align.trains, tune.trains) == ("projector", "everything")
    assert tune.continue_from == f"runs/{align.name}/model"


@pytest.mark.parametrize("name", PAPER)
def test_the_plan_counts_what_learns_and_says_what_is_not_there(name):
    for stage in ("mllm_align", "mllm_sft"):
        lines = list(plan(load(stage, name), LAUNCH))
        (count,) = (line for line in lines if line.startswith("language model"))
        assert LANGUAGE[name.split("-", 2)[2]] in count
        assert any("epochs unknown" in line for line in lines)
        assert "(not here; counted as the preset's)" in lines[0]


def test_nano_talks_as_it_was_taught():
    align, tune = load("mllm_align", "nano"), load("mllm_sft", "nano")
    steps = [*(load("mllm_sft", f"nano-{step}") for step in ("names", "corners", "sides")), tune]
    assert align.model.template is None and all(step.model == align.model for step in steps)
    chain = [step.continue_from for step in steps]
    assert chain == [f"runs/demo/{stage}/model" for stage in ("align", "names", "corners", "sides")]
    evaluation = load_recipe(UnderstandingEvaluationRecipe, RECIPES / "mllm_eval" / "nano.yaml")
    assert evaluation.model == "runs/demo/sft/model"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--language", "a"], "expected one of them"),
        (["--evaluation_conversations", "0"], "evaluation_conversations is 0"),
        (["--model.preset", "huge"], "unknown multimodal preset 'huge'"),
        (["--trains", "nothing"], "trains"),
    ],
)
def test_what_makes_no_sense_is_one_line(capsys, options, words):
    argv = ["--recipe", "nano", *options]
    assert words in complaint(capsys, UnderstandingRecipe, argv, stage="mllm_sft")


def test_pictures_of_all_sources_may_lie_in_one_place():
    argv = ["--recipe", "nano", "--data", "talk.jsonl", "--data.images", "pictures"]
    recipe = parse(UnderstandingRecipe, argv, stage="mllm_sft", description="").recipe
    assert recipe.data.images == "pictures" and recipe.data.sources[0].images is None

"""Every shipped recipe parses, is checked, meets every DeepSpeed JSON, and can be planned without data."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.recipes.command_lines import complaint
from tokenflow.config import RECIPES, Launch, load_recipe, parse, to_dict
from tokenflow.tasks import decoder_plan, generation_plan
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.generation_recipe import GenerationRecipe
from tokenflow.tasks.language import LanguageRecipe
from tokenflow.tasks.teacher import TeacherRecipe
from tokenflow.tasks.tokenizer_plan import plan
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.train import merge_deepspeed_config, zero_stage

LAUNCH = Launch(output=Path("run"), ds_config=None, resume="auto", init_from=None, dry_run=True)
CONFIGS = sorted((RECIPES.parents[1] / "deepspeed_configs").glob("*.json"))
CLASSES = {
    "teacher_pretrain": TeacherRecipe,
    "tokenizer_pretrain": TokenizerRecipe,
    "decoder_finetune": DecoderRecipe,
    "gen_pretrain": GenerationRecipe,
    "lm_pretrain": LanguageRecipe,
    "mllm_align": UnderstandingRecipe,
    "mllm_sft": UnderstandingRecipe,
}
# Evaluations train nothing and meet no DeepSpeed JSON: test_evaluation_recipes.py.
EVALUATIONS = ("tokenizer_eval", "gen_eval", "mllm_eval")
SHIPPED = sorted(path for path in RECIPES.glob("*/*.yaml") if path.parent.name not in EVALUATIONS)
PAPER = {"tokenflow-b": 1_000_000, "tokenflow-l": 500_000, "tokenflow-xl": 500_000}
GENERATORS = {"llama2-7b": "7,027,204,096", "tinyllama-1.1b": "1,240,247,040", "imagenet-class": "238,928,896"}
PARAMETERS = {"tokenflow-b": "181,902,251", "tokenflow-l": "559,964,139", "tokenflow-xl": "554,009,963"}


def load(path: Path):
    return load_recipe(CLASSES[path.parent.name], path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_meets_every_deepspeed_json(path, config):
    recipe, deepspeed = load(path), json.loads(config.read_text())
    optimizer = recipe.optimizer
    if optimizer.name == "muon" and zero_stage(deepspeed) > 0:
        with pytest.raises(ValueError, match=r"Use deepspeed_configs/zero0\.json, or --optimizer\.name adamw"):
            merge_deepspeed_config(deepspeed, recipe.train, optimizer, world_size=1)
        optimizer = dataclasses.replace(optimizer, name="adamw")
    merged = merge_deepspeed_config(deepspeed, recipe.train, optimizer, world_size=1)
    assert merged["train_batch_size"] == recipe.train.global_batch_size
    # DeepSpeed clips at 1.0 when nothing is said; the authors' generation clips at 0.5.
    expected = 0.5 if recipe.name in ("generation-llama2-7b", "generation-tinyllama-1.1b") else 1.0
    assert merged["gradient_clipping"] == recipe.train.gradient_clipping == expected


@pytest.mark.parametrize("name", sorted(PAPER))
def test_paper_recipes_have_the_settings_of_table_11(name):
    recipe = load(RECIPES / "tokenizer_pretrain" / f"{name}.yaml")
    tokenizer = recipe.model.config()
    assert recipe.train.steps == PAPER[name]
    assert recipe.train.global_batch_size == 256
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.train.gradient_clipping == 1.0
    assert recipe.loss.adversarial_weight == 0.5
    assert tokenizer.commitment_weight == 0.25
    assert tokenizer.codebook_size == 32768
    assert tokenizer.code_widths == (32, 8)
    assert [branch.weight for branch in tokenizer.branches] == [1.0, 1.0]


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_dry_run_of_a_paper_recipe_counts_its_parameters(name):
    parsed = parse(
        TokenizerRecipe,
        ["--recipe", name, "--ds_config", str(CONFIGS[-1]), "--dry_run"],
        stage="tokenizer_pretrain",
        description="",
    )
    lines = list(plan(parsed.recipe, parsed.launch))
    assert any("tokenizer in all" in line and PARAMETERS[name] in line for line in lines)
    assert any(str(parsed.recipe.model.config().num_tokens) in line.replace(",", "") for line in lines)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_dry_run_of_a_decoder_recipe_counts_both_decoders_before_there_is_a_tokenizer(name):
    parsed = parse(DecoderRecipe, ["--recipe", name, "--dry_run"], stage="decoder_finetune", description="")
    lines = list(decoder_plan.plan(parsed.recipe, parsed.launch))
    assert any("decoder before" in line and "42,452,099" in line for line in lines)
    assert any("decoder to train" in line and "237,119,491" in line for line in lines)


def test_a_dry_run_without_tokenizer_and_preset_says_what_to_give():
    argv = ["--recipe", "nano", "--tokenizer", "nowhere", "--preset", "null", "--dry_run"]
    parsed = parse(DecoderRecipe, argv, stage="decoder_finetune", description="")
    with pytest.raises(ValueError, match="Give --preset"):
        list(decoder_plan.plan(parsed.recipe, parsed.launch))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_dry_run_of_a_generation_recipe_counts_parameters_and_codes_before_there_is_anything(name):
    argv = ["--recipe", name, "--ds_config", str(CONFIGS[-1]), "--dry_run"]
    parsed = parse(GenerationRecipe, argv, stage="gen_pretrain", description="")
    lines = list(generation_plan.plan(parsed.recipe, parsed.launch))
    assert any("generator in all" in line and GENERATORS[name] in line for line in lines)
    assert any(line.startswith("817 tokens an image of 32,768 codes") for line in lines)
    assert any("8 GPUs" in line for line in lines)


def test_llama2_7b_has_the_settings_of_paper_and_code():
    recipe = load(RECIPES / "gen_pretrain" / "llama2-7b.yaml")
    config = recipe.model.config()
    assert recipe.train.steps == -(-2 * 60_000_000 // recipe.train.global_batch_size)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (5e-4, 0.1)
    assert (recipe.schedule.kind, recipe.schedule.warmup_steps) == ("constant", 5000)
    assert (recipe.caption_drop, recipe.first_sentence) == (0.1, 0.2)
    assert (recipe.train.precision, recipe.construction, recipe.train.gradient_clipping) == ("bf16", "sharded", 0.5)
    assert (config.text_length, config.loss_over, config.language.checkpointing) == (128, "vocabulary", "layer")
    assert (recipe.samples.guidance_scale, recipe.samples.steps) == (7.5, "three-step")


def test_the_world_of_left_and_right_is_never_flipped():
    recipe = load(RECIPES / "gen_pretrain" / "nano.yaml")
    assert (recipe.data.flip_probability, recipe.data.crop) == (0.0, "center")
    counted = next(line for line in generation_plan.plan(recipe, LAUNCH) if "generator in all" in line)
    assert 0.5e6 < int(counted.split()[-2].replace(",", "")) < 2e6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "nano", "--caption_drop", "2"], "caption_drop is 2"),
        (["--recipe", "nano", "--model.preset", "nanno"], "unknown generator preset"),
        (["--recipe", "nano", "--model.language.dept", "2"], "dept"),
        (["--recipe", "nano", "--model.loss_over", "vocabulary"], "head_rows"),
        (["--recipe", "nano", "--samples.guidance_scale", "-1"], "guidance_scale is -1"),
        (["--recipe", "imagenet-class", "--data.records", "false"], "Set data.records true"),
        (["--recipe", "imagenet-class", "--samples.prompts", '["cat"]'], "'cat'; expected class numbers below 1000"),
        (["--recipe", "imagenet-class", "--text_tokenizer", "train"], "prompted by classes"),
    ],
)
def test_a_wrong_generation_command_line_ends_with_one_line(argv, message, capsys):
    assert message in complaint(capsys, GenerationRecipe, argv, stage="gen_pretrain")


def test_the_command_line_wins_over_the_recipe_whatever_the_order():
    argv = ["--train.steps", "7", "--recipe", "nano", "--model.overrides.codebook_size", "64", "--data", "pictures"]
    recipe = parse(TokenizerRecipe, argv, stage="tokenizer_pretrain", description="").recipe
    assert recipe.train.steps == 7
    assert recipe.model.config().codebook_size == 64
    assert [source.path for source in recipe.data.sources] == ["pictures"]
    assert recipe.evaluation_sources == ()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "nano", "--train.stepz", "7"], "train.stepz"),
        (["--recipe", "nano", "--train.steps", "many"], "train.steps"),
        (["--recipe", "nano", "--train.micro_batch_size", "5"], "not a multiple"),
        (["--recipe", "nano", "--data.image_size", "64"], "Make them equal"),
        (["--recipe", "huge"], "neither a file nor a shipped recipe"),
        (["--recipe", "nano", "--model.preset", "tokenflow-q"], "unknown tokenizer preset"),
        (["--recipe", "nano", "--train.precision", "bf16"], "bf16_autocast"),
        (["--recipe", "nano", "--model.overrides.pixel_decoder", "null"], "nothing to discriminate"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line_that_names_the_value(argv, message, capsys):
    assert message in complaint(capsys, TokenizerRecipe, argv, stage="tokenizer_pretrain")


def test_a_written_recipe_reads_back_equal(tmp_path):
    recipe = load(RECIPES / "tokenizer_pretrain" / "nano.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(recipe)))
    assert load_recipe(TokenizerRecipe, path) == recipe
    assert dataclasses.asdict(recipe)["name"] == "tokenizer-nano"

"""Stages 4 and 5 for real: a small language model, its alignment and its tuning, on one and two processes."""

import json

import pytest
import torch

from tests.pipelines.world import CONFIGS
from tests.train.launching import curve, refused, run, stop
from tokenflow import ImageToText
from tokenflow.cli import main as command
from tokenflow.data.world_conversations import write_conversations
from tokenflow.language.hf import load_hf_language
from tokenflow.train import read_rows

LANGUAGE, ALIGN, TUNE = "pipelines.lm_pretrain", "pipelines.mllm_align", "pipelines.mllm_sft"
EVALUATE = "pipelines.mllm_eval"
TERMS = ("loss", "accuracy", "learned_tokens")
QUIET = ("--tracking.mlflow", "false")
SHORT = (
    *("--train.global_batch_size", 8, "--train.micro_batch_size", 4, "--train.log_every", 1),
    *("--train.evaluate_every", 3, "--train.save_every", 2, "--tracking.system_metrics", "false"),
)
ADAM = ("--optimizer.name", "adamw", "--optimizer.learning_rate", 3e-3)


@pytest.fixture(scope="module")
def talk(world, tmp_path_factory):
    """Conversations about the world's training pictures."""
    folder = tmp_path_factory.mktemp("talk")
    write_conversations(folder, num_scenes=96, seed=0, turns=3)
    return folder


@pytest.fixture(scope="module")
def language(talk, tmp_path_factory):
    """A language model after a few steps."""
    output = tmp_path_factory.mktemp("language") / "run"
    sizes = ("--language", '{"width": 64, "depth": 2, "heads": 4, "kv_heads": 4, "head_width": 16, "mlp_width": 96}')
    given = ("--recipe", "nano", "--data", talk / "text.jsonl", "--output", output, *sizes, *SHORT, *QUIET)
    run(*given, "--train.steps", 6, module=LANGUAGE)
    return output


def stage_options(world, tokenizer, data, output, *start):
    pictures = ("--data.images", world / "train", "--tokenizer", tokenizer)
    return ["--recipe", "nano", "--data", data, *pictures, "--output", output, "--train.steps", 6, *SHORT, *start]


@pytest.fixture(scope="module")
def align_options(world, barely_trained, talk, language):
    def options(output):
        given = stage_options(world, barely_trained, talk / "captions.jsonl", output)
        return [*given, "--language", language / "model", *ADAM]

    return options


@pytest.fixture(scope="module")
def aligned(align_options, tmp_path_factory):
    """One unbroken alignment on one process."""
    output = tmp_path_factory.mktemp("aligned") / "run"
    run(*align_options(output), module=ALIGN)
    return output


@pytest.fixture(scope="module")
def tune_options(world, barely_trained, talk, aligned):
    def options(output):
        given = stage_options(world, barely_trained, talk / "questions.jsonl", output)
        return [*given, "--continue_from", aligned / "model", *ADAM, *QUIET]

    return options


@pytest.fixture(scope="module")
def tuned(tune_options, tmp_path_factory):
    """One unbroken tuning on one process, by accumulation, ZeRO off."""
    output = tmp_path_factory.mktemp("tuned") / "run"
    run(*tune_options(output), module=TUNE)
    return output


def weights(folder):
    return ImageToText.from_pretrained(folder / "model").model.state_dict()


def assert_same_curve(folder, reference, *, rel=3e-4):
    for kind, terms in (("train", TERMS), ("evaluation", TERMS[:2])):
        for term in terms:
            expected = curve(reference, term, kind)
            assert curve(folder, term, kind) == pytest.approx(expected, rel=rel, abs=1e-6), (kind, term)


def test_a_small_language_model_learns_and_is_a_hugging_face_folder(language):
    assert curve(language)[-1] < curve(language)[0]
    found = load_hf_language(language / "model")
    assert found.config.width == 64 and set(found.weights)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(language / "model")
    ids = tokenizer("what colour is the star? red", return_tensors="pt").input_ids
    logits = AutoModelForCausalLM.from_pretrained(language / "model")(ids).logits
    assert logits.shape[-1] == len(tokenizer)


def test_the_alignment_moves_the_projector_alone(language, aligned):
    found, start = weights(aligned), load_hf_language(language / "model")
    for name in start.weights:
        assert torch.equal(found[f"language.{name}"], start.weights[name]), name
    assert torch.equal(found["head.weight"], start.head["lm_head.weight"])
    rows = read_rows(aligned / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [3, 6]
    assert curve(aligned)[-1] < curve(aligned)[0]


def test_a_stopped_alignment_ends_like_the_unbroken_one(align_options, aligned, tmp_path):
    options = [*align_options(tmp_path / "run"), *QUIET]
    stop(*options, folder=tmp_path / "run", module=ALIGN)
    run(*options, module=ALIGN)
    for term in TERMS:
        assert curve(tmp_path / "run", term) == curve(aligned, term)
    assert all(torch.equal(value, weights(aligned)[name]) for name, value in weights(tmp_path / "run").items())


def test_going_on_with_other_positions_is_told(tune_options, tmp_path):
    told = "learned with rotary 'grid' and goes on with 'sequence'"
    short = ("--train.steps", 1)
    assert told in run(*tune_options(tmp_path / "other"), *short, "--model.rotary", "sequence", module=TUNE)
    assert "learned with rotary" not in run(*tune_options(tmp_path / "same"), *short, module=TUNE)


def test_features_are_whitened_with_pictures_or_not_at_all(align_options, talk, tmp_path):
    def reading(*names):
        options = [*align_options(tmp_path / names[0]), *QUIET]
        place = options.index("--data")
        sources = json.dumps([{"path": str(talk / name)} for name in names])
        return [*options[:place], "--data.sources", sources, *options[place + 2 :]]

    assert "have no picture; set model.whiten to false" in refused(*reading("text.jsonl"), module=ALIGN)
    run(*reading("captions.jsonl", "text.jsonl"), module=ALIGN)
    assert weights(tmp_path / "captions.jsonl")["whitening.weight"].isfinite().all()


def test_tuning_moves_everything_but_the_whitening_and_the_export_answers(aligned, tuned):
    before, after = weights(aligned), weights(tuned)
    still = [name for name in after if torch.equal(before[name], after[name])]
    assert still == ["whitening.weight", "whitening.bias"]
    # computed from pictures, not drawn
    torch.testing.assert_close(after["whitening.weight"], after["whitening.weight"].T)
    model = ImageToText.from_pretrained(tuned / "model")
    assert len(model.answer([None, None], ["what colour is it?", "how many?"], max_new_tokens=3)) == 2


@pytest.mark.parametrize(("stage", "construction"), [(2, "whole"), (3, "whole"), (3, "sharded")])
def test_two_processes_reach_the_curve_of_one(tune_options, tuned, tmp_path, stage, construction):
    config = ("--ds_config", CONFIGS / f"zero{stage}.json", "--construction", construction)
    run(*tune_options(tmp_path / "two"), *config, world_size=2, module=TUNE)
    assert_same_curve(tmp_path / "two", tuned)
    expected = weights(tuned)
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-3)


def test_low_rank_adapters_learn_alike_on_two_processes_and_are_merged_on_export(tune_options, aligned, tmp_path):
    adapters = ("--trains", "lora", "--lora.rank", 4, "--lora.alpha", 8, "--lora.dropout", 0)
    run(*tune_options(tmp_path / "one"), *adapters, module=TUNE)
    sharded = ("--ds_config", CONFIGS / "zero3.json")
    run(*tune_options(tmp_path / "two"), *adapters, *sharded, world_size=2, module=TUNE)
    assert_same_curve(tmp_path / "two", tmp_path / "one")
    before, one, two = weights(aligned), weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys() == before.keys()
    still = {name for name in one if torch.equal(before[name], one[name])}
    assert {"head.weight", "language.embed_tokens.weight"} <= still
    assert not [name for name in still if "proj" in name]
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=2e-3)


def test_codes_in_place_of_pictures_teach_the_same(world, barely_trained, tune_options, tuned, tmp_path):
    codes = tmp_path / "codes"
    given = ("--data", world / "train", "--tokenizer", barely_trained, "--out", codes)
    assert command(["encode-shards", *map(str, given)]) == 0
    run(*tune_options(tmp_path / "run"), "--data.images", codes, module=TUNE)
    assert_same_curve(tmp_path / "run", tuned)


def test_packed_rows_reach_the_curve_of_padded_ones(tune_options, tuned, tmp_path):
    run(*tune_options(tmp_path / "packed"), "--packing", "rows", module=TUNE)
    assert_same_curve(tmp_path / "packed", tuned)


def test_an_evaluation_on_two_processes_equals_that_of_one(tuned, tmp_path):
    for number in (1, 2):
        given = ("--recipe", "nano", "--model", tuned / "model", "--questions.questions_per_kind", 6)
        run(
            *given, "--output", tmp_path / str(number), "--questions.batch_size", 16, world_size=number, module=EVALUATE
        )
    one, two = (json.loads((tmp_path / str(number) / "result.json").read_text())["metrics"] for number in (1, 2))
    assert one == two and 0 <= one["overall"] <= 1
    assert (tmp_path / "1" / "result.md").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--continue_from", "nowhere"], "expected one of them"),
        (["--model.template", "qwen_2_5"], "template"),
        (["--model.max_length", 65], "no answer begins within max_length 65"),
    ],
)
def test_a_wrong_choice_ends_with_one_line_before_training(align_options, tmp_path, options, message):
    assert message in refused(*align_options(tmp_path / "run"), *QUIET, *options, module=ALIGN)
    assert not (tmp_path / "run" / "checkpoints").exists()

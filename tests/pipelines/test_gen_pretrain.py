"""Stage 3 for real: the generator trains on one and two processes, from random weights and from a language model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.pipelines.world import CONFIGS, GENERATOR, generator_options
from tests.train.launching import curve, refused, run, stop
from tokenflow import TextToImage, TokenFlowTokenizer
from tokenflow.cli import main as command
from tokenflow.data import DataConfig, SourceConfig, read_captions
from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece
from tokenflow.train import read_rows

SCALES = (1, 2, 4, 8)
WEIGHTS = (4, 4, 1, 1)
"""Of the recipe."""
TERMS = ("loss", "accuracy", *(f"loss/scale_{scale}" for scale in SCALES))
QUIET = ("--tracking.mlflow", "false")
PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def finished(world, barely_trained, tmp_path_factory):
    """One unbroken run on one process, by accumulation, ZeRO off."""
    output = tmp_path_factory.mktemp("one") / "run"
    run(*generator_options(world, barely_trained, output), module=GENERATOR)
    return output


@pytest.fixture(scope="module")
def language_model(world, tmp_path_factory):
    """A tiny random Llama as Hugging Face stores it, with a text tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    data = DataConfig(sources=(SourceConfig(path=str(world / "train")),), image_size=32)
    train_sentencepiece(read_captions(data, at_most=96), folder, vocabulary_size=320)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=330, num_key_value_heads=2, **sizes)).save_pretrained(folder)
    return folder


def test_the_loss_is_the_weighted_mean_over_codes_and_evaluations_measure_and_paint(finished):
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        # Training counts as the recipe says, an evaluation counts every code once.
        weights = WEIGHTS if row["kind"] == "train" else (1,) * 4
        counts = [weight * scale**2 for weight, scale in zip(weights, SCALES, strict=True)]
        total = sum(count * row[f"loss/scale_{scale}"] for count, scale in zip(counts, SCALES, strict=True))
        assert row["loss"] == pytest.approx(total / sum(counts), rel=1e-5)
        assert 0 <= row["accuracy"] <= 1
    assert curve(finished)[-1] < curve(finished)[0]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [3, 6]
    assert (finished / "images" / "samples_00000006.png").is_file()


def test_the_exported_folder_paints_with_its_own_tokenizers(barely_trained, finished):
    model = TextToImage.from_pretrained(finished / "model")
    images = model.generate(PROMPTS, guidance_scale=1.0, steps="three-step")
    assert images.shape == (2, 3, 32, 32) and images.abs().max() <= 1
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(
        model.tokenizer.encode(pixels), TokenFlowTokenizer.from_pretrained(barely_trained).encode(pixels)
    )
    trained = load_text_tokenizer(finished / "text_tokenizer")
    for prompt in (*PROMPTS, "", "naïve words"):
        assert model.text_tokenizer(prompt)["input_ids"] == trained(prompt)["input_ids"]


@pytest.mark.parametrize(("stage", "construction"), [(1, "whole"), (2, "whole"), (3, "whole"), (3, "sharded")])
def test_two_processes_reach_the_curve_of_one(world, barely_trained, finished, tmp_path, stage, construction):
    options = generator_options(world, barely_trained, tmp_path / "two")
    config = ("--ds_config", CONFIGS / f"zero{stage}.json", "--construction", construction)
    run(*options, *config, *QUIET, world_size=2, module=GENERATOR)
    for kind in ("train", "evaluation"):
        for term in TERMS:
            expected = curve(finished, term, kind)
            assert curve(tmp_path / "two", term, kind) == pytest.approx(expected, rel=2e-4, abs=1e-6), (kind, term)
    weights = TextToImage.from_pretrained(tmp_path / "two" / "model").generator.state_dict()
    for name, value in TextToImage.from_pretrained(finished / "model").generator.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-3)


def test_muon_on_two_processes_reaches_the_curve_of_one_and_a_stopped_run_too(world, barely_trained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(*generator_options(world, barely_trained, one, optimizer="muon"), *QUIET, module=GENERATOR)
    options = [*generator_options(world, barely_trained, two, optimizer="muon"), *QUIET]
    stop(*options, folder=two, module=GENERATOR)
    run(*options, world_size=2, module=GENERATOR)
    for term in TERMS:
        assert curve(two, term) == pytest.approx(curve(one, term), rel=2e-3, abs=1e-6), term


def test_a_stopped_run_ends_like_the_unbroken_one_and_keeps_its_text_tokenizer(
    world, barely_trained, finished, tmp_path
):
    options = [*generator_options(world, barely_trained, tmp_path / "run"), *QUIET]
    stop(*options, folder=tmp_path / "run", module=GENERATOR)
    written = (tmp_path / "run" / "text_tokenizer" / "tokenizer.model").stat()
    run(*options, module=GENERATOR)
    for term in TERMS:
        assert curve(tmp_path / "run", term) == curve(finished, term)
    kept = (tmp_path / "run" / "text_tokenizer" / "tokenizer.model").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    first, second = (TextToImage.from_pretrained(folder / "model") for folder in (finished, tmp_path / "run"))
    codes = [model.generate_codes(PROMPTS, guidance_scale=1.0) for model in (first, second)]
    assert torch.equal(*codes)


def test_a_sharded_language_model_starts_and_trains_like_a_whole_one(world, barely_trained, language_model, tmp_path):
    runs = []
    for name, options, world_size in (
        ("whole", (), 1),
        ("sharded", ("--ds_config", CONFIGS / "zero3.json", "--construction", "sharded"), 2),
    ):
        given = generator_options(world, barely_trained, tmp_path / name, steps=3)
        full = ("--model.preset", "llama2-7b", "--model.loss_over", "vocabulary", "--model.text_length", 24)
        sizes = ("--model.overrides.scales", "[1,2,4,8]", "--model.overrides.codebook_size", 1024)
        checkpoint = ("--model.overrides.code_width", 24, "--language", language_model)
        run(*given, *full, *sizes, *checkpoint, *options, *QUIET, world_size=world_size, module=GENERATOR)
        runs.append(tmp_path / name)
    whole, sharded = runs
    for term in TERMS:
        assert curve(sharded, term) == pytest.approx(curve(whole, term), rel=2e-4, abs=1e-6), term
    config = TextToImage.from_pretrained(sharded / "model").generator.config
    assert (config.language.width, config.language.kv_heads, config.language.norm_order) == (32, 2, "post")
    assert config.image_token_start == config.pad_token + 1 and config.image_open and config.image_close


def test_stored_codes_train_exactly_like_the_pictures(world, barely_trained, finished, tmp_path):
    for split in ("train", "seen"):
        given = ["--data", world / split, "--tokenizer", barely_trained, "--out", tmp_path / split]
        assert command(["encode-shards", *map(str, given)]) == 0
    run(*generator_options(tmp_path, barely_trained, tmp_path / "run"), *QUIET, module=GENERATOR)
    for kind in ("train", "evaluation"):
        for term in TERMS:
            assert curve(tmp_path / "run", term, kind) == curve(finished, term, kind), (kind, term)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--model.overrides.codebook_size", 64], "expects codebook_size 64 and the image tokenizer"),
        (["--text_tokenizer", "nowhere"], "'nowhere' is no folder here"),
    ],
)
def test_a_wrong_choice_ends_with_one_line_before_training(world, barely_trained, tmp_path, options, message):
    given = generator_options(world, barely_trained, tmp_path / "run", steps=2)
    assert message in refused(*given, *options, module=GENERATOR)
    assert not (tmp_path / "run" / "checkpoints").exists()

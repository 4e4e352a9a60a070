"""What stage 2 builds, without running it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.config import RECIPES, Launch, load_recipe
from tokenflow.tasks.decoder import DecoderTask, build_decoder
from tokenflow.tasks.decoder_plan import plan
from tokenflow.tasks.decoder_recipe import DecoderChoice, DecoderRecipe
from tokenflow.tokenizer.losses import TokenizerLossConfig
from tokenflow.tokenizer.presets import preset
from tokenflow.train import TrainState


def recipe(**decoder) -> DecoderRecipe:
    shipped = load_recipe(DecoderRecipe, RECIPES / "decoder_finetune" / "nano.yaml")
    return dataclasses.replace(shipped, decoder=DecoderChoice(**decoder))


def parse_launch(output) -> Launch:
    return Launch(output=output, ds_config=None, resume="auto", init_from=None, dry_run=True)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return TokenFlowTokenizer(preset("tokenflow-nano")).eval()


@pytest.mark.parametrize("factors", [(1, 1), (2, 2), (2, 1), (1, 3)])
def test_a_grown_decoder_draws_the_same_pictures_from_the_same_codes(tokenizer, factors):
    decoder = build_decoder(recipe(channel_factor=factors[0], block_factor=factors[1]), tokenizer)
    codes = tokenizer.encode(torch.rand(3, 3, 32, 32) * 2 - 1)
    with torch.no_grad():
        pictures = decoder(tokenizer.pixel_codes(codes)).clamp(-1, 1)
    torch.testing.assert_close(pictures, tokenizer.decode(codes), rtol=0, atol=1e-4)


def test_a_decoder_that_starts_at_random_has_the_size_and_not_the_function(tokenizer):
    grown, random = (build_decoder(recipe(start=start), tokenizer) for start in ("grown", "random"))
    assert [p.shape for p in grown.parameters()] == [p.shape for p in random.parameters()]
    codes = tokenizer.encode(torch.rand(3, 3, 32, 32) * 2 - 1)
    with torch.no_grad():
        assert (random(tokenizer.pixel_codes(codes)) - tokenizer.decode(codes)).abs().max() > 0.01


def test_doubling_a_paper_size_decoder_gives_the_authors_enhanced_one():
    for size in ("tokenflow-b", "tokenflow-b-256", "tokenflow-l", "tokenflow-xl"):
        assert DecoderChoice().config(preset(size)) == preset(f"{size}-enhanced")


def test_the_tokenizer_stays_out_of_autocast_in_evaluations_too(tokenizer, monkeypatch):
    seen = []
    encode = TokenFlowTokenizer.encode
    watched = lambda self, images: seen.append(torch.is_autocast_enabled("cpu")) or encode(self, images)  # noqa: E731
    monkeypatch.setattr(TokenFlowTokenizer, "encode", watched)
    shipped = recipe()
    bf16 = dataclasses.replace(shipped, train=dataclasses.replace(shipped.train, precision="bf16_autocast"))
    bf16 = dataclasses.replace(bf16, loss=TokenizerLossConfig(perceptual="none", discriminator="none"))
    batch = {"images": torch.rand(2, 3, 32, 32) * 2 - 1, "mask": torch.ones(2, dtype=torch.bool)}
    task = DecoderTask(bf16, tokenizer=tokenizer, evaluation_batches=[batch])
    decoder = build_decoder(bf16, tokenizer).eval()
    engine = SimpleNamespace(module=decoder, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    metrics = task.evaluate({"decoder": engine}, TrainState(seed=0)).metrics
    assert seen and not any(seen)
    # The grown decoder is the base one but for bf16's rounding.
    assert metrics["psnr_gain"] == pytest.approx(0, abs=0.5)


def test_a_run_does_not_go_on_with_another_tokenizer(tokenizer):
    plain = dataclasses.replace(recipe(), loss=TokenizerLossConfig(perceptual="none", discriminator="none"))
    state = DecoderTask(plain, tokenizer=tokenizer, evaluation_batches=[]).state_dict()
    torch.manual_seed(1)
    other = TokenFlowTokenizer(preset("tokenflow-nano")).eval()
    with pytest.raises(ValueError, match="is not the one that this run began with"):
        DecoderTask(plain, tokenizer=other, evaluation_batches=[]).load_state_dict(state)
    DecoderTask(plain, tokenizer=tokenizer, evaluation_batches=[]).load_state_dict(state)


def test_a_tokenizer_of_another_size_is_refused_by_the_plan_too(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    wrong = dataclasses.replace(recipe(), tokenizer=str(tmp_path / "model"))
    wrong = dataclasses.replace(wrong, data=dataclasses.replace(wrong.data, image_size=64))
    with pytest.raises(ValueError, match="reads 32 pixels"):
        list(plan(wrong, parse_launch(tmp_path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="is not a tokenizer folder"):
        list(plan(dataclasses.replace(wrong, tokenizer=str(tmp_path / "empty")), parse_launch(tmp_path)))


def test_forgetting_a_decoder_of_the_same_size_is_refused():
    with pytest.raises(ValueError, match="would forget the decoder"):
        recipe(channel_factor=1, block_factor=1, start="random")


def test_a_tokenizer_without_a_pixel_decoder_is_refused():
    with pytest.raises(ValueError, match="no pixel decoder to train"):
        DecoderChoice().config(preset("vqkd"))

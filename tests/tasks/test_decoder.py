"""What stage 2 builds, without running it."""

import dataclasses

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.config import RECIPES, load_recipe
from tokenflow.tasks.decoder import build_decoder
from tokenflow.tasks.decoder_recipe import DecoderChoice, DecoderRecipe
from tokenflow.tokenizer.presets import preset


def recipe(**decoder) -> DecoderRecipe:
    shipped = load_recipe(DecoderRecipe, RECIPES / "decoder_finetune" / "nano.yaml")
    return dataclasses.replace(shipped, decoder=DecoderChoice(**decoder))


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


def test_doubling_tokenflow_b_gives_the_authors_enhanced_decoder():
    doubled = DecoderChoice().config(preset("tokenflow-b-256"))
    assert doubled == preset("tokenflow-b-256-enhanced")


def test_forgetting_a_decoder_of_the_same_size_is_refused():
    with pytest.raises(ValueError, match="would forget the decoder"):
        recipe(channel_factor=1, block_factor=1, start="random")


def test_a_tokenizer_without_a_pixel_decoder_is_refused():
    with pytest.raises(ValueError, match="no pixel decoder to train"):
        DecoderChoice().config(preset("vqkd"))

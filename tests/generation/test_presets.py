"""Sizes of the named generators, and configurations that cannot be."""

import dataclasses

import pytest
import torch

from tests.generation.tiny import tiny_config
from tokenflow.generation.model import Generator
from tokenflow.generation.presets import PRESET_TOKENIZERS, PRESETS, preset
from tokenflow.tokenizer.config import from_dict, to_dict
from tokenflow.tokenizer.presets import preset as tokenizer_preset

PARAMETERS = {
    "llama2-7b": 7_027_204_096,
    "tinyllama-1.1b": 1_240_247_040,
    "llama-186m": 185_697_792,
    "llama-100m": 100_365_056,
    "nano": 1_048_576,
    "var-d16": 238_928_896,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = Generator(preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_paint_with_their_tokenizer(name):
    config, tokenizer = preset(name), tokenizer_preset(PRESET_TOKENIZERS[name])
    assert config.scales == tokenizer.scales and config.codebook_size == tokenizer.codebook_size
    assert config.code_width == sum(tokenizer.code_widths)


def test_the_paper_size_vocabulary():
    config = preset("llama2-7b")
    assert (config.vocabulary_size, config.pad_token, config.image_token_start) == (64769, 32000, 32001)
    assert config.num_codes == 817 and config.text_length == 128


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name):
    assert from_dict(type(preset(name)), to_dict(preset(name))) == preset(name)


def test_another_text_tokenizer_moves_the_image_tokens():
    config = preset("nano").with_text_vocabulary(90)
    assert (config.pad_token, config.image_token_start, config.language.vocabulary_size) == (90, 91, 91)
    config = preset("llama2-7b").with_text_vocabulary(50, image_open=(3,))
    assert config.language.vocabulary_size == 51 + 32768 and config.image_open == (3,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": (2, 4)}, "expected 1 first"),
        ({"scales": (1, 3, 2)}, "strictly increasing"),
        ({"head_rows": "codes"}, "needs head_rows='vocabulary'"),
        ({"prompt": "class"}, "set both for classes"),
        ({"image_open": (40,)}, "below image_token_start"),
        ({"pad_token": 40}, "below image_token_start"),
        ({"text_length": 60}, "max_positions is 64"),
        ({"loss_over": "codes", "image_close": (3,)}, "Leave image_close empty"),
        ({"image_token_start": 90}, "Extend the vocabulary"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_config(), **fields)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"llama2-7b, tinyllama-1\.1b"):
        preset("llama3")

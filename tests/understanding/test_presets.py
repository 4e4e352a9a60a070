"""Presets have the sizes of the paper's models; feature strategies have the shapes of Table 8."""

import dataclasses

import pytest
import torch

from tokenflow.tokenizer.config import from_dict, to_dict
from tokenflow.tokenizer.presets import PRESETS as TOKENIZERS
from tokenflow.tokenizer.presets import TEACHERS
from tokenflow.understanding.backbone import backbone_config, language_weights
from tokenflow.understanding.config import UnderstandingConfig, check_tower, feature_shape, for_tower
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.presets import PRESET_TOKENIZERS, PRESETS, nano, preset

VICUNA, QWEN = 13_015_864_320, 14_770_033_664
PROJECTOR = 40 * 5120 + 5120 + 5120 * 5120 + 5120
NUMBERS = {
    "tokenflow-b-vicuna-13b": (VICUNA + PROJECTOR, 196),
    "tokenflow-l-vicuna-13b": (VICUNA + PROJECTOR, 256),
    "tokenflow-xl-vicuna-13b": (VICUNA + PROJECTOR, 729),
    "tokenflow-xl-qwen2.5-14b": (QWEN + PROJECTOR, 729),
}
"""Parameters, and positions an image takes."""


@pytest.mark.parametrize("name", NUMBERS)
def test_paper_size_models_have_their_parameters(name):
    with torch.device("meta"):
        model = MultimodalModel(preset(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (count, model.config.image_tokens) == NUMBERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_their_tokenizers_and_survive_json(name):
    config = PRESETS[name]
    check_tower(config, TOKENIZERS[PRESET_TOKENIZERS[name]], model=name, name=PRESET_TOKENIZERS[name])
    assert from_dict(UnderstandingConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("features", "shape"),
    [("last_scale", (64, 24)), ("all_scales", (85, 24)), ("residuals", (85, 24)), ("semantic", (64, 16))],
)
def test_strategies_have_the_shapes_that_the_tokenizer_gives(features, shape):
    from tokenflow import TokenFlowTokenizer

    tokenizer = TokenFlowTokenizer(TOKENIZERS["tokenflow-nano"])
    assert feature_shape(tokenizer.config, features) == shape
    assert tokenizer.features(torch.randint(256, (2, 85)), features).shape[1:] == shape


def test_a_teacher_stands_in_for_codes():
    config = for_tower(nano(), TEACHERS["nano"], features="teacher")
    assert (config.image_tokens, config.feature_width, config.image_size) == (64, 64, 32)
    with pytest.raises(ValueError, match="the tower is a tokenizer"):
        for_tower(config, TOKENIZERS["tokenflow-nano"])


def test_another_tokenizer_is_named_with_both_values():
    with pytest.raises(ValueError, match=r"model of mine expects image_size 384 \(last_scale\) and the .* x has 256"):
        check_tower(preset("tokenflow-xl-vicuna-13b"), TOKENIZERS["tokenflow-l"], model="of mine", name="x")
    with pytest.raises(ValueError, match="unknown multimodal preset"):
        preset("vicuna")


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_starts_from_a_language_model_of_transformers(tmp_path, tied):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tokenflow.language.hf import load_hf_language

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=tied, **sizes))
    theirs.save_pretrained(tmp_path)
    found = load_hf_language(tmp_path)
    config = backbone_config(found.config, TOKENIZERS["tokenflow-nano"], template="qwen_2_5")
    model = MultimodalModel(config)
    model.load_state_dict(dict(language_weights(config, found)))
    again = language_weights(config, found, seed=0)
    assert torch.equal(model.projector[0].weight, again["projector.0.weight"])
    assert not torch.equal(model.projector[0].weight, language_weights(config, found, seed=1)["projector.0.weight"])
    assert torch.equal(model.head.weight, theirs.lm_head.weight)
    assert torch.equal(model.language.layers[1].mlp.up_proj.weight, theirs.model.layers[1].mlp.up_proj.weight)
    other = dataclasses.replace(config, language=dataclasses.replace(config.language, depth=3))
    with pytest.raises(ValueError, match="has depth 2 and the multimodal model 3"):
        language_weights(other, found)

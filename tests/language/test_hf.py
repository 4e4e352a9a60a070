import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tokenflow.language.hf import language_config, load_hf_language
from tokenflow.language.hf_export import save_hf_language
from tokenflow.language.transformer import CausalTransformer
from tokenflow.ops.attention_layout import AttentionLayout, Sample
from tokenflow.train.weights import load_state

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500000.0,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "llama, grouped, biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads, tied": (LlamaForCausalLM, LlamaConfig, {"head_dim": 16, "tie_word_embeddings": True}),
    "llama, linear scaling": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "llama, llama3 scaling": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"rms_norm_eps": 1e-6}),
    "qwen2, tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
}


def reference(name):
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(5)
    model = model_class(config_class(**{**SIZES, **options})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    return model


def ours(folder):
    found = load_hf_language(folder)
    model = CausalTransformer(found.config)
    load_state(model, found.weights)
    return model, found


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    model, found = ours(tmp_path)
    ids = torch.randint(0, 61, (2, 70))
    with torch.no_grad():
        expected = theirs(ids).logits
        hidden = model(model.embed_tokens(ids), layout=AttentionLayout.causal(2, 70))
    logits = hidden @ found.head["lm_head.weight"].T
    torch.testing.assert_close(logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_left_padded_logits_equal_those_of_transformers(tmp_path):
    theirs = reference("qwen2")
    theirs.save_pretrained(tmp_path)
    model, found = ours(tmp_path)
    lengths = (9, 4)
    ids = torch.randint(0, 61, (2, 9))
    layout = AttentionLayout(tuple((Sample(9 - n, n),) for n in lengths), 9)
    tokens = layout.is_token("cpu")
    positions = (tokens.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=tokens.long(), position_ids=positions).logits[tokens]
        hidden = model(model.embed_tokens(ids), layout=layout, positions=positions)[tokens]
    found_logits = hidden @ found.head["lm_head.weight"].T
    torch.testing.assert_close(found_logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_sharded_safetensors_and_bin_files_hold_the_same_weights(tmp_path):
    theirs = reference("llama")
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for name, legacy in (("bin", False), ("old_bin", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
        state = theirs.state_dict()
        torch.save(state, tmp_path / name / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    expected = load_hf_language(tmp_path / "whole")
    for name in ("sharded", "bin", "old_bin"):
        found = load_hf_language(tmp_path / name)
        assert found.config == expected.config and set(found.weights) == set(expected.weights)
        for key, value in found.weights.items():
            assert torch.equal(value, expected.weights[key]), key


def test_weights_are_read_one_at_a_time_and_can_be_renamed_and_changed(tmp_path):
    reference("llama").save_pretrained(tmp_path)
    weights = load_hf_language(tmp_path).weights
    changed = weights.renamed(lambda name: f"language.{name}" if name.startswith("embed") else None)
    changed = changed.changed("language.embed_tokens.weight", lambda table: table[:3])
    changed = changed.joined({"extra": torch.ones(2)})
    assert {name: tuple(value.shape) for name, value in changed.items()} == {
        "language.embed_tokens.weight": (3, 32),
        "extra": (2,),
    }
    assert weights["norm.weight"] is not weights["norm.weight"]


def test_configurations_of_transformers_4_and_5_read_the_same():
    common = {"model_type": "llama", **SIZES}
    old = {**common, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {**common, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert language_config(old) == language_config(new)
    assert language_config(LlamaConfig(**SIZES)).rope_scaling is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected one of llama"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "sliding windows are not implemented"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks high_freq_factor, low_freq_factor"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2"),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        language_config({"model_type": "llama", **SIZES, **change})


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match="is no folder here, and the hub did not give it"):
        load_hf_language("nobody/nothing")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_hf_language(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    with pytest.raises(ValueError, match="holds no weights"):
        load_hf_language(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds no 'embed_tokens\.weight'"):
        load_hf_language(tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names model-00001-of-00002"):
        load_hf_language(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_a_written_folder_is_what_was_read_and_transformers_agrees(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "theirs")
    config, weights, head = load_hf_language(tmp_path / "theirs")
    folder = tmp_path / "ours"
    save_hf_language(folder, config=config, weights=dict(weights), head=head["lm_head.weight"])
    again = load_hf_language(folder)
    assert again.config == config
    assert all(torch.equal(again.weights[key], value) for key, value in weights.items())
    ids = torch.randint(0, 61, (2, 9))
    with torch.no_grad():
        logits = type(theirs).from_pretrained(folder)(ids).logits
        torch.testing.assert_close(logits, theirs(ids).logits)


def test_what_transformers_cannot_hold_is_refused(tmp_path):
    config = dataclasses.replace(language_config(reference("qwen2").config), norm_order="post")
    with pytest.raises(ValueError, match="norm_order is 'post'"):
        save_hf_language(tmp_path, config=config, weights={}, head=torch.zeros(61, 32))

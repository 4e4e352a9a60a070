"""A causal transformer and its head as a Hugging Face folder that transformers reads: Llama's layout, or Qwen2's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenflow.language.config import LanguageConfig
from tokenflow.nn.folder import MAX_SHARD_SIZE, save_folder


def hf_description(config: LanguageConfig) -> dict[str, Any]:
    """What config.json says of a language model; `language_config` is the inverse.

    Raises:
        ValueError: Neither Llama's layout nor Qwen2's holds it.
    """
    if config.norm_order != "pre" or config.qk_norm:
        raise ValueError(
            f"norm_order is {config.norm_order!r} and qk_norm {config.qk_norm}; transformers' Llama and Qwen2 have "
            "norm_order 'pre' and no qk_norm. Save it as a folder of tokenflow's."
        )
    qwen = config.qkv_bias and not config.output_bias
    if qwen and config.mlp_bias:
        raise ValueError("qkv_bias and mlp_bias without output_bias: neither Llama nor Qwen2 has these biases.")
    description: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
    }
    if qwen:
        return description | {"use_sliding_window": False}
    return description | {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}


def save_hf_language(
    directory: str | Path,
    *,
    config: LanguageConfig,
    weights: Mapping[str, Tensor],
    head: Tensor,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write safetensors, config.json and a card; `load_hf_language` and transformers read it. Returns the folder.

    Args:
        directory: Made if need be.
        config: Of the transformer.
        weights: `CausalTransformer`'s state dict.
        head: [V, W]; left out where `config.tie_embeddings`.
        max_shard_size: Larger models are written in several files.
    """
    description = hf_description(config)
    state = {f"model.{name}": value for name, value in weights.items()}
    if not config.tie_embeddings:
        state["lm_head.weight"] = head
    description["torch_dtype"] = str(head.dtype).removeprefix("torch.")
    card = f"# Language model\n\n{config.depth} layers of width {config.width}; transformers reads this folder.\n"
    return save_folder(directory, state=state, description=description, card=card, max_shard_size=max_shard_size)

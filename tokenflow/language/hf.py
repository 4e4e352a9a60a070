"""Llama and Qwen2 checkpoints of Hugging Face as our configuration and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenflow.language.config import LanguageConfig
from tokenflow.language.lazy_tensors import LazyTensors, open_tensors
from tokenflow.nn.folder import read_description

_FAMILIES = {
    "llama": "llama",
    "llava_llama": "llama",
    "qwen2": "qwen2",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
}
_HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"


class HfLanguage(NamedTuple):
    """A language model on disk."""

    config: LanguageConfig
    """Sizes and variants; pre-norm and without QK-norm, as pretrained."""
    weights: LazyTensors
    """`CausalTransformer`'s weights under its names, read one at a time; for `Engine(weights=...)` or `load_state`."""
    head: LazyTensors
    """The language head as `lm_head.weight`; the embedding table where the two are tied."""


def language_config(hf_config: Any) -> LanguageConfig:
    """Our configuration for a Llama or Qwen2 one of transformers (4 or 5), or for the content of its config.json.

    Raises:
        ValueError: Another architecture, or a variant that is not implemented (activation, rotary scaling, windows).
    """
    values = dict(hf_config) if isinstance(hf_config, Mapping) else hf_config.to_dict()
    family = _FAMILIES.get(values.get("model_type"))
    if family is None:
        raise ValueError(
            f"model_type is {values.get('model_type')!r}; expected one of {', '.join(_FAMILIES)}. Give a checkpoint of "
            "the Llama or Qwen2 architecture."
        )
    if values.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {values['hidden_act']!r}; only 'silu' is implemented.")
    if values.get("use_sliding_window"):
        raise ValueError("use_sliding_window is true; sliding windows are not implemented. Set it to false.")
    if values.get("pretraining_tp", 1) != 1:
        raise ValueError(f"pretraining_tp is {values['pretraining_tp']}; expected 1. Set it to 1 in config.json.")
    heads, width = values["num_attention_heads"], values["hidden_size"]
    attention_bias = bool(values.get("attention_bias", False))
    theta, scaling = _rotary(values)
    return LanguageConfig(
        vocabulary_size=values["vocab_size"],
        width=width,
        depth=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_width=values.get("head_dim") or width // heads,
        mlp_width=values["intermediate_size"],
        norm_epsilon=values.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias and family == "llama",
        mlp_bias=bool(values.get("mlp_bias", False)),
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        max_positions=values.get("max_position_embeddings", 2048),
    )


def _rotary(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(parameters.pop("rope_theta", None) or values.get("rope_theta") or 10000.0)
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    return theta, None if kind == "default" else {"rope_type": kind, **parameters}


def load_hf_language(source: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> HfLanguage:
    """Open a Llama or Qwen2 checkpoint: a folder, or a hub id such as "meta-llama/Llama-2-7b-hf", which is downloaded.

    Nothing is read but the configuration and the names of the weights.

    Raises:
        ValueError: The source is neither a folder nor a hub id in reach, or holds another architecture.
    """
    folder = _find(source, revision=revision, token=token)
    config = language_config(read_description(folder, key="model_type", hint=" Give a Llama or Qwen2 of transformers."))
    stored = open_tensors(folder)
    # Buffers that old checkpoints carry; the frequencies come from the configuration.
    named = stored.renamed(lambda name: None if name.endswith("rotary_emb.inv_freq") else name.removeprefix("model."))
    head_name = _TABLE if config.tie_embeddings or _HEAD not in named else _HEAD
    if head_name not in named:
        raise ValueError(f"{folder} holds no {head_name!r}; expected a causal language model. Wrong folder?")
    return HfLanguage(
        config,
        named.renamed(lambda name: None if name == _HEAD else name),
        named.renamed(lambda name: _HEAD if name == head_name else None),
    )


def _find(source: str | Path, *, revision: str | None, token: str | bool | None) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = _download(snapshot_download, str(source), revision=revision, token=token)
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise ValueError(
                f"{str(source)!r} is no folder here, and the hub did not give it ({type(error).__name__}). Give a "
                "folder with config.json and weights, or log in with `hf auth login` for a gated model."
            ) from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; expected a Hugging Face checkpoint folder.")
    return folder


def _download(download: Any, source: str, *, revision: str | None, token: str | bool | None) -> Path:
    """Safetensors; .bin files only where there are none, because many repositories hold both."""
    folder = Path(download(source, revision=revision, token=token, allow_patterns=["*.json", "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):
        download(source, revision=revision, token=token, allow_patterns=["*.json", "pytorch_model*.bin"])
    return folder

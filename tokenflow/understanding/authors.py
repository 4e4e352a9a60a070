"""The authors' `Tokenflow-llava-qwen2.5-14B-finetuning` folder: a Hugging Face folder of Llama or Qwen2 with LLaVA's
keys beside the language model's, the image tokenizer among them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokenflow.language.hf import language_config
from tokenflow.language.hf_export import hf_description
from tokenflow.language.lazy_tensors import LazyTensors, open_tensors
from tokenflow.nn.folder import CONFIG_FILE, MAX_SHARD_SIZE, assign_weights, save_folder
from tokenflow.tokenizer.authors import import_tokenizer
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset as tokenizer_preset
from tokenflow.tokenizer.state_dict import to_authors as tokenizer_to_authors
from tokenflow.understanding.backbone import backbone_config
from tokenflow.understanding.config import Aspect, UnderstandingConfig
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.state_dict import from_authors, to_authors, vision_state

_ASPECTS: dict[str | None, Aspect] = {"pad": "pad", "square": "stretch", None: "stretch"}


class AuthorsModel(NamedTuple):
    """What a folder of the authors' holds."""

    model: MultimodalModel
    """In eval mode and in the dtype of its files."""
    tokenizer: TokenFlowTokenizer | None
    """The image tokenizer, fp32; None where the folder has none."""


def authors_config(
    values: dict[str, Any], *, tokenizer_config: TokenizerConfig | None = None, **overrides: Any
) -> UnderstandingConfig:
    """Our configuration of a `config.json` of the authors'; `overrides` replace top-level fields.

    `tokenizer_config` is the image tokenizer's, theirs always being the one of 384 pixels.

    Raises:
        ValueError: Options of LLaVA that the authors do not use (marks around images, tiles).
    """
    aspect = values.get("image_aspect_ratio")
    if values.get("mm_use_im_start_end") or values.get("mm_use_im_patch_token") or aspect not in _ASPECTS:
        raise ValueError(
            f"mm_use_im_start_end is {values.get('mm_use_im_start_end')}, mm_use_im_patch_token "
            f"{values.get('mm_use_im_patch_token')}, image_aspect_ratio {aspect!r}; expected false, false and one of "
            f"pad, square. The authors' model has no other."
        )
    if values.get("mm_patch_merge_type", "flat") != "flat":
        raise ValueError(f"mm_patch_merge_type is {values['mm_patch_merge_type']!r}; expected 'flat'.")
    language = language_config(values)
    return backbone_config(
        language,
        tokenizer_preset("tokenflow-xl") if tokenizer_config is None else tokenizer_config,
        **{
            "projector": values.get("mm_projector_type", "linear"),
            "template": "qwen_2_5" if "qwen" in values["model_type"] else "vicuna_v1",
            "aspect": _ASPECTS[aspect],
            "max_length": min(values.get("tokenizer_model_max_length") or 2048, language.max_positions),
            **overrides,
        },
    )


def read_authors_folder(
    folder: str | Path, *, tokenizer_config: TokenizerConfig | None = None, **overrides: Any
) -> AuthorsModel:
    """The model and the image tokenizer of a folder of the authors'; strict.

    Args:
        folder: config.json and weights.
        tokenizer_config: Of the image tokenizer, where it is not the one of 384 pixels.
        **overrides: Fields of `UnderstandingConfig`.

    Raises:
        FileNotFoundError: config.json or weights are missing.
        ValueError: The weights do not fit the configuration; it names keys or shapes.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}. Expected a multimodal folder of the authors'.")
    config = authors_config(
        json.loads((folder / CONFIG_FILE).read_text()), tokenizer_config=tokenizer_config, **overrides
    )
    state = open_tensors(folder)
    with torch.device("meta"):
        model = MultimodalModel(config)
    weights = from_authors(model.state_dict(), state, projector=config.projector)
    assign_weights(model, dict(weights.items()), source=str(folder))
    return AuthorsModel(model.eval(), _read_tokenizer(vision_state(state), tokenizer_config))


def _read_tokenizer(state: LazyTensors, config: TokenizerConfig | None) -> TokenFlowTokenizer | None:
    if not len(state):
        return None
    return import_tokenizer(dict(state.items()), config=config or tokenizer_preset("tokenflow-xl"))


def write_authors_folder(
    model: MultimodalModel,
    folder: str | Path,
    *,
    tokenizer: TokenFlowTokenizer | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write safetensors and config.json as the authors' loader expects them; returns the folder.

    `tokenizer` goes with it, as in the folder that they released.

    Raises:
        ValueError: Their code has no place for such a model (other features, a centre crop, another
            projector input).
    """
    config = model.config
    plain = (
        dataclasses.replace(config, merge=1, neighbourhood=1, whiten=False, coordinates=0, rotary="sequence") == config
    )
    if config.features != "last_scale" or config.aspect == "crop" or not plain:
        raise ValueError(
            f"features are {config.features!r}, aspect {config.aspect!r}, merge {config.merge}, neighbourhood "
            f"{config.neighbourhood}, whiten {config.whiten}, coordinates {config.coordinates} and rotary "
            f"{config.rotary!r}; the authors' code has 'last_scale', 'pad' or 'stretch', 1, 1, false, 0 and 'sequence' "
            "only. Use save_pretrained."
        )
    description = hf_description(dataclasses.replace(config.language, tie_embeddings=False))
    family = "Qwen" if description["model_type"] == "qwen2" else "Llama"
    description |= {
        "architectures": [f"Llava{family}ForCausalLM"],
        "model_type": f"llava_{family.lower()}",
        "torch_dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "mm_vision_vq_type": "TOKENFLOW",
        "mm_projector_type": config.projector,
        "mm_patch_merge_type": "flat",
        "mm_vision_select_layer": -2,
        "mm_hidden_size": config.feature_width,
        "image_aspect_ratio": "pad" if config.aspect == "pad" else "square",
        "tokenizer_model_max_length": config.max_length,
        "tokenizer_padding_side": "right",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }
    vision = None if tokenizer is None else tokenizer_to_authors(tokenizer.config, tokenizer.state_dict())
    state = to_authors(model.state_dict(), projector=config.projector, vision=vision)
    card = "# Multimodal model in the layout of the authors' Tokenflow-llava-qwen2.5-14B-finetuning\n"
    return save_folder(folder, state=state, description=description, card=card, max_shard_size=max_shard_size)

"""A multimodal model that starts from a pretrained language model (paper, section 3.4: Vicuna, Qwen2.5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflow.language.config import LanguageConfig
from tokenflow.language.hf import HfLanguage, load_hf_language
from tokenflow.language.lazy_tensors import LazyTensors
from tokenflow.understanding.config import UnderstandingConfig, feature_shape, image_size, merged_tokens
from tokenflow.understanding.projector import build_projector, whitening

_SIZES = (
    *("vocabulary_size", "width", "depth", "heads", "kv_heads", "head_width", "mlp_width", "norm_epsilon"),
    *("rope_theta", "qkv_bias", "output_bias", "mlp_bias", "norm_order", "qk_norm"),
)


def backbone_config(language: LanguageConfig, tower: Any, **fields: Any) -> UnderstandingConfig:
    """The multimodal model that grows from `language` on an image tokenizer (its configuration, or a teacher's).

    `fields` are those of `UnderstandingConfig`; sizes of the image come from the tower.
    """
    features = fields.get("features", "last_scale")
    tokens, width = feature_shape(tower, features)
    return UnderstandingConfig(
        language=dataclasses.replace(language, tie_embeddings=False),
        image_size=image_size(tower),
        image_tokens=merged_tokens(tokens, merge=fields.get("merge", 1), features=features),
        feature_width=width,
        **fields,
    )


def language_weights(
    config: UnderstandingConfig,
    source: str | Path | HfLanguage,
    *,
    seed: int = 0,
    features: Float[Tensor, "rows C"] | None = None,
) -> LazyTensors:
    """First weights of a `MultimodalModel`: a language model's under its names, read one at a time, and a projector's.

    The projector is drawn from `seed`, so that ranks that build the model in parts begin with the same. A head that is
    tied to the table of embeddings begins as a copy of it. `source` is a folder or hub id, or what `load_hf_language`
    returned; `features` are some of training, where the configuration wants them whitened.

    Raises:
        ValueError: The language model is another than the configuration's; it names the difference. Or features are
            missing.
    """
    found = source if isinstance(source, HfLanguage) else load_hf_language(source)
    for name in _SIZES:
        if getattr(found.config, name) != getattr(config.language, name):
            raise ValueError(
                f"the language model has {name} {getattr(found.config, name)} and the multimodal model "
                f"{getattr(config.language, name)}. Take its sizes from the language model: backbone_config."
            )
    weights = found.weights.renamed(lambda name: f"language.{name}")
    weights = weights.joined(found.head.renamed(lambda _: "head.weight")).joined(_projector(config, seed=seed))
    return weights.joined(_whitening(features)) if config.whiten else weights


def _whitening(features: Tensor | None) -> dict[str, Tensor]:
    if features is None:
        raise ValueError("whiten is true; pass features of training pictures, whose statistics it takes.")
    weight, bias = whitening(features)
    return {"whitening.weight": weight, "whitening.bias": bias}


def _projector(config: UnderstandingConfig, *, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = build_projector(
            config.projector,
            feature_width=config.projector_width,
            width=config.language.width,
            deviation=config.language.embedding_deviation,
        )
    return {f"projector.{name}": value for name, value in projector.state_dict().items()}

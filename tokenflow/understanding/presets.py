"""Named multimodal models: data, not classes."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenflow.language.config import LANGUAGE_PRESETS, LanguageConfig
from tokenflow.tokenizer.presets import PRESETS as TOKENIZERS
from tokenflow.understanding.backbone import backbone_config
from tokenflow.understanding.config import UnderstandingConfig

PRESET_TOKENIZERS: dict[str, str] = {
    "nano": "tokenflow-nano",
    "tokenflow-b-vicuna-13b": "tokenflow-b",
    "tokenflow-l-vicuna-13b": "tokenflow-l",
    "tokenflow-xl-vicuna-13b": "tokenflow-xl",
    "tokenflow-xl-qwen2.5-14b": "tokenflow-xl",
}
"""Image tokenizer of each preset (Table 3)."""
PRESET_LANGUAGES: dict[str, str] = {
    **{f"tokenflow-{size}-vicuna-13b": "lmsys/vicuna-13b-v1.5" for size in ("b", "l", "xl")},
    "tokenflow-xl-qwen2.5-14b": "Qwen/Qwen2.5-14B-Instruct",
}
"""Where each preset's language model is; nano's is trained here, by pipelines/lm_pretrain.py."""


def nano_language(*, text_vocabulary: int = 400) -> LanguageConfig:
    """The language model of the built-in world; two CPU cores train it in a minute."""
    return LanguageConfig(
        vocabulary_size=text_vocabulary,
        width=128,
        depth=4,
        heads=4,
        kv_heads=4,
        head_width=32,
        mlp_width=384,
        max_positions=256,
    )


def nano(*, text_vocabulary: int = 400, **fields: Any) -> UnderstandingConfig:
    """The multimodal model of the built-in world: 64 positions an image, no system message."""
    options = {"system": "", "aspect": "stretch", "max_length": 256} | fields
    return backbone_config(
        nano_language(text_vocabulary=text_vocabulary), TOKENIZERS[PRESET_TOKENIZERS["nano"]], **options
    )


def _paper(name: str, language: str, **fields: Any) -> UnderstandingConfig:
    return backbone_config(LANGUAGE_PRESETS[language], TOKENIZERS[PRESET_TOKENIZERS[name]], **fields)


PRESETS: dict[str, UnderstandingConfig] = {
    "nano": nano(),
    **{
        name: _paper(name, "vicuna-13b")
        for name in ("tokenflow-b-vicuna-13b", "tokenflow-l-vicuna-13b", "tokenflow-xl-vicuna-13b")
    },
    "tokenflow-xl-qwen2.5-14b": _paper("tokenflow-xl-qwen2.5-14b", "qwen2.5-14b", template="qwen_2_5"),
}


def preset(name: str, **overrides: Any) -> UnderstandingConfig:
    """A named multimodal model, with some top-level fields replaced."""
    if name not in PRESETS:
        raise ValueError(f"unknown multimodal preset {name!r}; expected one of {', '.join(PRESETS)}.")
    return dataclasses.replace(PRESETS[name], **overrides)

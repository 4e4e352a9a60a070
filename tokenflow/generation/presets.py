"""Named generators: data, not classes."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenflow.generation.backbone import backbone_config
from tokenflow.generation.config import GeneratorConfig
from tokenflow.language.config import LANGUAGE_PRESETS, LanguageConfig
from tokenflow.tokenizer.presets import SCALES_256

LLAMA_OPEN = (529, 2492, 29958)
"""Llama's tokens of "<img>", an ordinary text."""
LLAMA_CLOSE = (1533, 2492, 29958, 2)
"""Llama's tokens of "</img>", and EOS."""


def _language(
    *, width: int, depth: int, heads: int, mlp_width: int, vocabulary_size: int, max_positions: int, **fields: Any
) -> LanguageConfig:
    """Norms after attention and MLP, and on each head's query and key (paper section 3.3)."""
    return LanguageConfig(
        vocabulary_size=vocabulary_size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        max_positions=max_positions,
        norm_order="post",
        qk_norm=True,
        **fields,
    )


def _text_to_image(language: LanguageConfig) -> GeneratorConfig:
    """A language model with Llama's text tokenizer on the enhanced 256-pixel tokenizer, as TokenFlow-t2i."""
    return backbone_config(
        language,
        scales=SCALES_256,
        codebook_size=32768,
        code_width=40,
        image_open=LLAMA_OPEN,
        image_close=LLAMA_CLOSE,
    )


def nano(*, text_vocabulary: int = 256) -> GeneratorConfig:
    """The generator of the built-in world; two CPU cores train it. `text_vocabulary` without `[PAD]`."""
    return GeneratorConfig(
        language=_language(
            width=128,
            depth=4,
            heads=4,
            mlp_width=384,
            vocabulary_size=text_vocabulary + 1,
            max_positions=256,
            embedding_deviation=1.0,
        ),
        scales=(1, 2, 4, 8),
        codebook_size=1024,
        code_width=24,
        text_length=24,
        pad_token=text_vocabulary,
        image_token_start=text_vocabulary + 1,
        head_rows="codes",
        loss_over="codes",
    )


def _class_conditional() -> GeneratorConfig:
    """Fig. 6: a transformer of VAR's depth-16 size, prompted by one of ImageNet's classes."""
    return GeneratorConfig(
        language=_language(
            width=1024,
            depth=16,
            heads=16,
            mlp_width=2752,
            vocabulary_size=1001,
            max_positions=1024,
            embedding_deviation=1.0,
        ),
        scales=SCALES_256,
        codebook_size=32768,
        code_width=40,
        prompt="class",
        num_classes=1000,
        text_length=1,
        pad_token=1000,
        image_token_start=1001,
        head_rows="codes",
        loss_over="codes",
    )


PRESETS: dict[str, GeneratorConfig] = {
    "llama2-7b": _text_to_image(LANGUAGE_PRESETS["llama-2-7b"]),
    "tinyllama-1.1b": _text_to_image(LANGUAGE_PRESETS["tinyllama-1.1b"]),
    "llama-186m": _text_to_image(
        _language(width=768, depth=12, heads=12, mlp_width=2048, vocabulary_size=32000, max_positions=2048)
    ),
    "llama-100m": GeneratorConfig(
        language=_language(width=768, depth=10, heads=12, mlp_width=2048, max_positions=2048, vocabulary_size=4096),
        scales=SCALES_256,
        codebook_size=32768,
        code_width=40,
        pad_token=4095,
        image_token_start=4096,
        head_rows="codes",
        loss_over="codes",
    ),
    "nano": nano(),
    "var-d16": _class_conditional(),
}

PRESET_TOKENIZERS: dict[str, str] = {
    name: "tokenflow-nano" if name == "nano" else "tokenflow-b-256-enhanced" for name in PRESETS
}
"""Image tokenizer of each preset."""


def preset(name: str, **overrides: Any) -> GeneratorConfig:
    """A named generator, with some top-level fields replaced."""
    if name not in PRESETS:
        raise ValueError(f"unknown generator preset {name!r}; expected one of {', '.join(PRESETS)}.")
    return dataclasses.replace(PRESETS[name], **overrides)

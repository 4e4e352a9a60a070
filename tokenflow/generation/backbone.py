"""A generator that starts from a pretrained language model: vocabulary extension, new norms (paper section 3.3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenflow.generation.config import GeneratorConfig
from tokenflow.language.config import LanguageConfig
from tokenflow.language.hf import HfLanguage, load_hf_language
from tokenflow.language.lazy_tensors import LazyTensors
from tokenflow.language.vocabulary import NewRows, VisualVocabulary, extend_rows

_TABLE = "language.embed_tokens.weight"
_HEAD = "head.weight"


def backbone_config(
    language: LanguageConfig,
    *,
    text_vocabulary: int | None = None,
    scales: tuple[int, ...],
    codebook_size: int,
    **fields: Any,
) -> GeneratorConfig:
    """The generator that grows from a pretrained `language`, of any Llama architecture.

    `text_vocabulary` is the number of ids that the text tokenizer uses, where that is not the whole table; `fields` are
    those of `GeneratorConfig`.
    """
    text_size = language.vocabulary_size if text_vocabulary is None else text_vocabulary
    vocabulary = VisualVocabulary(text_size=text_size, codebook_size=codebook_size)
    return GeneratorConfig(
        language=dataclasses.replace(
            language, vocabulary_size=vocabulary.size, norm_order="post", qk_norm=True, tie_embeddings=False
        ),
        scales=scales,
        codebook_size=codebook_size,
        pad_token=vocabulary.pad_token,
        image_token_start=vocabulary.image_token_start,
        **fields,
    )


def backbone_weights(
    config: GeneratorConfig, source: str | Path | HfLanguage, *, new_rows: NewRows = "mean"
) -> LazyTensors:
    """A language model's weights under `Generator`'s names, read one at a time, with rows for `[PAD]` and the codes.

    What it has not (norms of heads, projector, embeddings of scale and position) keeps its first values: load without
    strictness. `source` is a folder or hub id, or what `load_hf_language` returned.

    Raises:
        ValueError: The model's sizes are not the configuration's; it names them.
    """
    found = source if isinstance(source, HfLanguage) else load_hf_language(source)
    for name in ("width", "depth", "heads", "kv_heads", "head_width", "mlp_width"):
        if getattr(found.config, name) != getattr(config.language, name):
            raise ValueError(
                f"the language model has {name} {getattr(found.config, name)} and the generator "
                f"{getattr(config.language, name)}. Take the generator's sizes from it: backbone_config."
            )
    text_size = config.pad_token

    def extended(table: Tensor, rows: int) -> Tensor:
        return extend_rows(table[:text_size], rows=rows, initialisation=new_rows)

    def head(table: Tensor) -> Tensor:
        rows = extended(table, config.vocabulary_size)
        return rows[config.image_token_start :] if config.head_rows == "codes" else rows

    weights = found.weights.renamed(lambda name: f"language.{name}")
    weights = weights.changed(_TABLE, lambda table: extended(table, config.language.vocabulary_size))
    heads = found.head.renamed(lambda _: _HEAD).changed(_HEAD, head)
    return weights.joined(heads)

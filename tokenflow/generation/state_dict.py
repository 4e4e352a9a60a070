"""Names of a generator's weights: ours against the authors' `TokenFlow-t2i` checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from tokenflow.generation.config import GeneratorConfig
from tokenflow.language.lazy_tensors import LazyTensors

IGNORED = ("image_token_start", "image_token_end")
"""Scalars that the authors' trainer saves and nobody reads."""
_OUTSIDE = {
    "projector.0.weight": "model.mm_projector.0.weight",
    "projector.0.bias": "model.mm_projector.0.bias",
    "projector.2.weight": "model.mm_projector.2.weight",
    "projector.2.bias": "model.mm_projector.2.bias",
    "scale_embedding.weight": "model.lvl_embed.weight",
    "image_positions.weight": "model.pos_1LC",
    "head.weight": "lm_head.weight",
}
_INSIDE = {
    ".self_attn.query_norm.": ".self_attn.qknorm.query_norm.",
    ".self_attn.key_norm.": ".self_attn.qknorm.key_norm.",
}


def authors_name(ours: str) -> str:
    """The authors' key of one of our names."""
    if ours in _OUTSIDE:
        return _OUTSIDE[ours]
    theirs = "model." + ours.removeprefix("language.")
    for old, new in _INSIDE.items():
        theirs = theirs.replace(old, new)
    return theirs


def check_authors(config: GeneratorConfig) -> None:
    """ValueError where the authors' layout cannot hold a generator."""
    if config.head_rows != "vocabulary" or config.language.vocabulary_size != config.vocabulary_size:
        raise ValueError(
            f"the authors' checkpoints hold all {config.vocabulary_size} ids in embeddings and head; this generator "
            f"has {config.language.vocabulary_size} embeddings and head_rows={config.head_rows!r}."
        )
    if config.language.norm_order != "post" or not config.language.qk_norm:
        raise ValueError("the authors' transformer has norm_order='post' and qk_norm=True; this generator has not.")


def from_authors(names: Iterable[str], state: Mapping[str, Tensor]) -> LazyTensors:
    """A checkpoint of the authors' under our `names`, each tensor read when it is asked for.

    A missing or an unexpected key is a ValueError naming some.
    """
    table = {authors_name(name): name for name in names}
    # Older transformers kept the rotary frequencies as a buffer.
    found = {key for key in state if key not in IGNORED and not key.endswith("rotary_emb.inv_freq")}
    missing, unexpected = sorted(set(table) - found), sorted(found - set(table))
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit: {len(missing)} keys missing {missing[:5]}, {len(unexpected)} unexpected "
            f"{unexpected[:5]}. Check that the configuration is the one the weights were made for."
        )
    return LazyTensors({ours: (lambda key=theirs: state[key]) for theirs, ours in table.items()})


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under the authors' keys."""
    return {authors_name(name): value for name, value in state.items()}

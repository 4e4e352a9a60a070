"""Names of a multimodal model's weights: ours against the authors' LLaVA checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from tokenflow.language.lazy_tensors import LazyTensors

VISION_PREFIX = "model.vision_tower.vision_tower."
"""Before the keys of the image tokenizer, which is part of their checkpoints."""
_PROJECTOR, _HEAD, _TABLE = "model.mm_projector.", "lm_head.weight", "model.embed_tokens.weight"


def authors_name(ours: str, *, projector: str) -> str:
    """The authors' key of one of our names; a `linear` projector's has no number."""
    if ours == "head.weight":
        return _HEAD
    if ours.startswith("projector."):
        part = ours.removeprefix("projector.")
        return _PROJECTOR + (part.removeprefix("0.") if projector == "linear" else part)
    return "model." + ours.removeprefix("language.")


def from_authors(names: Iterable[str], state: LazyTensors, *, projector: str) -> LazyTensors:
    """A checkpoint of the authors' under our `names`, each tensor read when it is asked for; the tokenizer left out.

    A missing or an unexpected key is a ValueError naming some. A head that is tied to the embeddings is a copy.
    """
    table = {authors_name(name, projector=projector): name for name in names}
    found = {key for key in state if not key.startswith(VISION_PREFIX) and not key.endswith("rotary_emb.inv_freq")}
    tied = {_HEAD} if _HEAD not in found and _TABLE in found else set()
    missing, unexpected = sorted(set(table) - found - tied), sorted(found - set(table))
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit: {len(missing)} keys missing {missing[:5]}, {len(unexpected)} unexpected "
            f"{unexpected[:5]}. Check that the configuration is the one the weights were made for."
        )
    weights = state.renamed(table.get)
    return weights.joined(state.renamed(lambda key: table[_HEAD] if key == _TABLE else None)) if tied else weights


def vision_state(state: LazyTensors) -> LazyTensors:
    """The image tokenizer's part of a checkpoint of the authors', under the keys of their tokenizer files."""
    return state.renamed(lambda key: key.removeprefix(VISION_PREFIX) if key.startswith(VISION_PREFIX) else None)


def to_authors(
    state: Mapping[str, Tensor], *, projector: str, vision: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A state dict of ours under the authors' keys, with the tokenizer's (`vision`, under its file's keys)."""
    renamed = {authors_name(name, projector=projector): value for name, value in state.items()}
    return renamed | {VISION_PREFIX + name: value for name, value in (vision or {}).items()}

"""What a run on conversations reads."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ConversationSourceConfig:
    """One file of conversations and the pictures it names."""

    path: str
    """A .json or .jsonl in LLaVA's format, or a .txt with a document a line."""
    images: str | None = None
    """Where its pictures lie: a folder, a folder of .tar shards, or a pattern of shards (`images/{000..127}.tar`); or
    their codes, a folder that `tokenflow encode-shards` wrote: then nothing is decoded or encoded in training."""
    name: str | None = None
    """Name in cursors and messages; the last part of the path by default."""
    weight: float | None = None
    """Share of this source in the mixture, relative to the others' weights; its number of conversations by default."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("a source's path is empty; give a .json, .jsonl or .txt file")
        if self.weight is not None and not self.weight > 0:
            raise ValueError(
                f"weight {self.weight} of source {self.path!r} must be positive; leave the source out to skip it"
            )


@dataclass(frozen=True, kw_only=True)
class ConversationConfig:
    """Sources, mixture and order of a run on conversations."""

    sources: tuple[ConversationSourceConfig, ...]
    """What to read."""
    images: str | None = None
    """Where pictures of sources lie that do not say it themselves; as a source's own `images`."""
    grouping: Literal["none", "modality", "modality_and_length"] = "none"
    """Which conversations share a global batch: any; those with pictures, or those without; those of like length, too.
    """
    grouping_batches: int = 64
    """Global batches that are sorted together: more makes batches more alike, fewer keeps the order more random."""
    image_length: int = 576
    """Positions that one picture takes, in words, where conversations are grouped by length."""
    num_workers: int = 0
    """Processes that read and decode, a rank; 0 does it in the training process."""
    prefetch_batches: int = 4
    """Micro-batches that each worker prepares ahead."""
    max_bad_fraction: float = 0.01
    """Share of unusable conversations above which the run stops, at its start or later."""
    min_bad_samples: int = 10
    """Unusable conversations that are tolerated in any case."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; give at least one .json, .jsonl or .txt file")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("some sources have a weight and some have none; give all of them one, or none")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction {self.max_bad_fraction} is a share; expected 0 to 1")
        least = {"grouping_batches": 1, "image_length": 0, "num_workers": 0, "prefetch_batches": 1}
        for name, bound in {**least, "min_bad_samples": 0}.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} {getattr(self, name)}; expected at least {bound}")

    @property
    def image_paths(self) -> list[str | None]:
        """Where the pictures of each source lie; None for a source that has none."""
        return [source.images or self.images for source in self.sources]

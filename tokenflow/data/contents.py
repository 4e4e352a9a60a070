"""What an inspection finds: counts that add up over shards, and what they say together."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tokenflow.data.codes import CodesDescription
from tokenflow.data.histograms import Histograms
from tokenflow.data.manifest_check import ManifestCheck

NAMED = 1000
"""Unusable samples that are named one by one; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A sample that training would skip."""

    key: str
    where: str
    """Its shard or file."""
    reason: str
    """A code: empty, truncated, corrupt, not_a_picture, bomb, float_pixels, damaged_shard, bad_record, ..."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A sample for the contact sheet."""

    key: str
    caption: str
    pixels: np.ndarray
    """uint8 [side, side, 3], ADM's centre crop."""


@dataclass(kw_only=True)
class Contents:
    """Counts of some samples; `add` puts two of them together."""

    samples: int = 0
    picture_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Samples with caption, captions (several), record, codes, faces_known, faces, recaptioned, broken_utf8."""
    formats: Counter[str] = field(default_factory=Counter)
    histograms: Histograms = field(default_factory=Histograms)
    reasons: Counter[str] = field(default_factory=Counter)
    """Unusable samples by the code of their reason."""
    unusable: list[Unusable] = field(default_factory=list)
    thumbnails: list[Thumbnail] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)
    """Hashes of the keys, uint64."""
    shards: list[dict[str, Any]] = field(default_factory=list)
    """name, samples, unusable, bytes, sha256 (None where no manifest has one) of every shard."""

    def add(self, other: "Contents") -> None:
        """Count the samples of `other` too."""
        self.samples += other.samples
        self.picture_bytes += other.picture_bytes
        self.counts += other.counts
        self.formats += other.formats
        self.histograms.add(other.histograms)
        self.reasons += other.reasons
        self.unusable += other.unusable[: NAMED - len(self.unusable)]
        self.thumbnails += other.thumbnails
        self.keys += other.keys
        self.shards += other.shards


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a path holds."""

    path: str
    kind: Literal["shards", "folder"]
    contents: Contents
    repeated_keys: int
    """Samples whose key an earlier one has."""
    repeated: tuple[tuple[str, str, str], ...]
    """(key, first place, another place) of some of them."""
    manifest: ManifestCheck | None
    """None where there is no manifest."""
    codes: CodesDescription | None
    """Whose codes it holds in place of pictures, if it does."""

    @property
    def unusable(self) -> int:
        """Samples that training would skip."""
        return sum(self.contents.reasons.values())

    def to_json(self) -> dict[str, Any]:
        """Plain types, without the thumbnails."""
        contents, shares = self.contents, max(1, self.contents.samples)
        return {
            "path": self.path,
            "kind": self.kind,
            "samples": contents.samples,
            "unusable": self.unusable,
            "picture_bytes": contents.picture_bytes,
            "counts": dict(sorted(contents.counts.items())),
            "shares": {name: round(count / shares, 4) for name, count in sorted(contents.counts.items())},
            "formats": dict(contents.formats.most_common()),
            "histograms": contents.histograms.to_json(),
            "unusable_by_reason": dict(contents.reasons.most_common()),
            "unusable_samples": [vars(item) for item in contents.unusable],
            "repeated_keys": self.repeated_keys,
            "repeated": [list(item) for item in self.repeated],
            "manifest": None if self.manifest is None else self.manifest.to_json(),
            "codes": None if self.codes is None else self.codes.to_json(),
            "shards": contents.shards,
        }

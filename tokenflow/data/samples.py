"""What a source gives: raw samples by index, whatever lies on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

IMAGE_EXTENSIONS: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
CODES_EXTENSION = "codes.npy"
"""Of the member with an image's codes, in shards that were encoded."""


class BadSample(Exception):
    """A sample that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """A sample as stored: bytes, not decoded."""

    key: str
    where: str
    """File or shard the sample lies in."""
    image: bytes | None
    """The picture; None where there are codes in its place."""
    text: bytes | None = None
    """Caption, UTF-8."""
    record: bytes | None = None
    """JSON object with anything else."""
    label: bytes | None = None
    """Number of its class, in digits (webdataset's `.cls`)."""
    codes: bytes | None = None
    """Its codes, a .npy file."""


class Source(Protocol):
    """A set of samples with random access; must be picklable, for worker processes."""

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Samples a shard; reads within a shard are near each other on disk."""

    def describe(self, index: int) -> tuple[str, str]:
        """(key, where) of a sample, for messages; works for damaged samples too."""

    def read(self, index: int) -> RawSample:
        """Sample number `index`, counted over the shards in order. Raises BadSample when it cannot be read."""

"""What a run reads, and the place in it that a checkpoint keeps."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of samples."""

    path: str
    """A folder of .tar shards, a pattern (`shards/{0000..0127}.tar`, `shards/*.tar`), or a folder of pictures."""
    name: str | None = None
    """Name in cursors and messages; the last part of the path by default."""
    weight: float = 1.0
    """Share of this source in the mixture, relative to the other sources' weights."""
    kind: Literal["auto", "shards", "folder"] = "auto"
    """How to read the path; auto takes shards where there are .tar files, else a folder of pictures."""
    face_factor: float = 1.0
    """By how much training multiplies the share of samples with faces (the paper doubles it: 2.0). Needs the index that
    `tokenflow find-faces` writes; evaluation ignores it."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("a source's path is empty; give a folder of pictures or of .tar shards")
        if not self.weight > 0:
            raise ValueError(
                f"weight {self.weight} of source {self.path!r} must be positive; leave the source out to skip it"
            )
        if not 0 < self.face_factor < float("inf"):
            raise ValueError(
                f"face_factor {self.face_factor} of source {self.path!r} must be positive; 1 leaves shares as they are"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources, mixture and preprocessing of a run."""

    sources: tuple[SourceConfig, ...]
    """What to read."""
    image_size: int
    """Side of the square pictures, in pixels."""
    crop: Literal["center", "random"] = "center"
    """center is ADM's centre crop; random keeps at least min_crop_fraction of the short side."""
    min_crop_fraction: float = 0.8
    """Smallest side of a random crop, as a share of the picture's short side."""
    flip_probability: float = 0.0
    """Chance of a horizontal flip. Keep at 0 where captions say left and right."""
    captions: Literal["first", "any"] = "first"
    """first takes the .txt; any draws among those of the .json where there are several."""
    captions_from: str = "captions"
    """Which list of the .json `any` draws from; a sample without it has its .txt."""
    records: bool = False
    """Whether batches carry the parsed .json of every sample."""
    window_shards: int = 8
    """Shards that are shuffled together: more mixes better, fewer reads more locally."""
    num_workers: int = 0
    """Processes that read and decode, a rank; 0 does it in the training process."""
    prefetch_batches: int = 4
    """Micro-batches that each worker prepares ahead."""
    max_bad_fraction: float = 0.01
    """Share of unusable samples above which the run stops."""
    min_bad_samples: int = 10
    """Unusable samples that are tolerated in any case."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; give at least one folder of pictures or of .tar shards")
        if self.image_size < 8:
            raise ValueError(f"image_size {self.image_size}; expected at least 8 pixels")
        for name in ("min_crop_fraction", "flip_probability", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is a share; expected 0 to 1")
        if self.min_crop_fraction < 0.05:
            raise ValueError(f"min_crop_fraction {self.min_crop_fraction}; expected at least 0.05")
        for name, least in (("num_workers", 0), ("prefetch_batches", 1), ("window_shards", 1), ("min_bad_samples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}; expected at least {least}")

    def without_upsampling(self) -> "DataConfig":
        """The same for reading samples one after the other: no source upsamples, and needs an index for it."""
        return replace(self, sources=tuple(replace(source, face_factor=1.0) for source in self.sources))


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A place in the global order, the same for every world size, micro-batch size and number of workers."""

    samples: int = 0
    """Samples that all ranks together have consumed since the start of the run."""
    sources: tuple[tuple[str, int, int], ...] = ()
    """(name, samples consumed, samples it holds) of every source; checked on resume."""

    def to_json(self) -> dict[str, Any]:
        """Plain types; `Cursor.from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Cursor":
        """The cursor of a `state.json`."""
        sources = tuple((str(name), int(consumed), int(size)) for name, consumed, size in record["sources"])
        return cls(samples=int(record["samples"]), sources=sources)

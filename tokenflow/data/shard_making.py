"""Makes webdataset shards of any source: every sample checked, converted and written once, whatever happens meanwhile.

Processes check samples; one process, in the order of the input, finds duplicates, gives names and writes. So the bytes
of the shards are a function of input, settings and seed, for any number of processes. A shard ends before the sample
with which it would exceed its size.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenflow.data.duplicates import NearIndex
from tokenflow.data.order import SourceOrder
from tokenflow.data.ordered_workers import WorkerDied, ordered_map
from tokenflow.data.picture_check import PictureConfig
from tokenflow.data.sample_check import CaptionConfig, CheckedSample, SampleChecker
from tokenflow.data.samples import Source
from tokenflow.data.shard_state import Part, Seen, ShardFolder
from tokenflow.data.shard_writer import ShardWriter, stored_bytes

_BLOCK = 8
_NAMES = 1024
_WINDOW_SHARDS = 4
_USUAL = ("resized", "converted")


@dataclass(frozen=True, kw_only=True)
class MakeShardsConfig:
    """What shards are made of and how."""

    pictures: PictureConfig = field(default_factory=PictureConfig)
    """Filters, size and format of the pictures."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """Filters and encoding of the captions."""
    duplicates: Literal["pixels", "near", "keep"] = "pixels"
    """pixels leaves out pictures whose pixels all equal those of an earlier one; near also those that look like one
    resized or compressed again; keep keeps all."""
    near_distance: int = 8
    """Bits of 128 by which the gradient hashes of near-duplicates may differ."""
    repeat_faces: int = 1
    """How many times a picture with faces (`faces.count` in its .json, from find-faces) is written."""
    shard_bytes: int = 256 * 1024**2
    """Largest shard, in bytes; a single sample may exceed it."""
    samples_per_shard: int | None = None
    """Most samples a shard; by default the bytes alone decide."""
    shuffle_seed: int | None = None
    """Shuffles the samples, as training would; by default they keep their order."""

    def __post_init__(self) -> None:
        if self.duplicates not in ("pixels", "near", "keep"):
            raise ValueError(f"duplicates is {self.duplicates!r}; expected pixels, near or keep")
        for name, least in (("repeat_faces", 1), ("shard_bytes", 1024), ("samples_per_shard", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        NearIndex(self.near_distance)


class ShardMaking:
    """The making of one set of shards; a second one with the same arguments continues where the first stopped."""

    def __init__(
        self,
        source: Source,
        folder: str | Path,
        *,
        path: str,
        config: MakeShardsConfig,
        columns: Mapping[str, Any] | None = None,
        block: int = _BLOCK,
    ):
        """Look at what is there; writes nothing.

        Args:
            source: What to read.
            folder: Where to write; made if need be.
            path: Of the input, for the manifest.
            config: What to make.
            columns: How the input is read, beyond its path: part of the settings that a second run must share.
            block: Neighbouring samples that a process takes at a time.

        Raises:
            ValueError: The folder is the input's, or holds shards of other settings.
        """
        if os.path.abspath(folder) == os.path.abspath(path):
            raise ValueError(f"--out is {str(folder)!r}, which is the input; choose another folder")
        self.source = source
        self.config = config
        self.total = sum(source.shard_sizes)
        described = {"path": os.path.abspath(path), "samples": self.total, "names": _digest(source, self.total)}
        described |= columns or {}
        self.folder = ShardFolder(folder, settings={"input": described, **asdict(config)})
        self._block = block
        self._order: SourceOrder | None = None
        if config.shuffle_seed is not None:
            self._order = SourceOrder(source.shard_sizes, seed=config.shuffle_seed, window_shards=_WINDOW_SHARDS)
        near = config.duplicates == "near"
        self._checker = SampleChecker(source=source, pictures=config.pictures, captions=config.captions, gradients=near)

    def done(self) -> tuple[int, int]:
        """(positions of the input that are done with, finished shards)."""
        if (manifest := self.folder.manifest()) is not None:
            return self.total, len(manifest["shards"])
        parts = list(self.folder.parts())
        return (parts[-1].stop if parts else 0), len(parts)

    def preview(self, count: int) -> list[CheckedSample]:
        """Check up to `count` samples, evenly spread over the input; writes nothing."""
        count = min(count, self.total)
        return self._checker([number * self.total // count for number in range(count)])

    def run(self, *, workers: int = 0, progress: Callable[[int], None] = lambda position: None) -> dict[str, Any]:
        """Write the missing shards, and the manifest, which is returned.

        Args:
            workers: Processes that check samples; 0 does it in this one.
            progress: Called with the number of positions of the input that are done with.

        Raises:
            ValueError: Another process writes to the folder.
        """
        if (manifest := self.folder.manifest()) is not None:
            self.folder.put_away()
            progress(self.total)
            return manifest
        with self.folder.lock():
            parts = list(self.folder.parts())
            known = _Known(self.config)
            for part in parts:
                for seen in part.seen:
                    known.add(seen)
            samples = self._checked(parts[-1].stop if parts else 0, workers)
            try:
                parts += self._write(samples, known, first=len(parts), progress=progress)
            finally:
                samples.close()
            return self.folder.finish(parts)

    def _checked(self, start: int, workers: int) -> Iterator[tuple[int, CheckedSample]]:
        """(position, sample) from `start` on, in order."""
        stops = range(start, self.total, self._block)
        blocks = (range(begin, min(begin + self._block, self.total)) for begin in stops)
        checks = ordered_map(self._check, blocks, workers=workers)
        try:
            for block, samples in checks:
                if isinstance(samples, WorkerDied):
                    samples = self._check_apart(block)
                yield from zip(block, samples, strict=True)
        finally:
            checks.close()

    def _check(self, block: range) -> list[CheckedSample]:
        return self._checker([self._index(position) for position in block])

    def _index(self, position: int) -> int:
        return position if self._order is None else self._order[position][1]

    def _check_apart(self, block: range) -> list[CheckedSample]:
        """The samples of a block that ended a worker, so that only the one that does it is lost."""
        found = []
        positions = (range(position, position + 1) for position in block)
        for one, samples in ordered_map(self._check, positions, workers=1):
            if isinstance(samples, WorkerDied):
                key, where = self.source.describe(self._index(one.start))
                detail = f"the process that checked it ended with exit code {samples.exit_code}: out of memory?"
                samples = [CheckedSample(key=key, original_key=key, where=where, reason="crashed", detail=detail)]
            found += samples
        return found

    def _write(
        self,
        samples: Iterator[tuple[int, CheckedSample]],
        known: "_Known",
        *,
        first: int,
        progress: Callable[[int], None],
    ) -> list[Part]:
        """The shards from number `first` on."""
        parts: list[Part] = []
        upcoming = next(samples, None)
        while upcoming is not None:
            number, part = first + len(parts), Part()
            with ShardWriter(self.folder.folder / f"shard-{number:06d}.tar") as writer:
                while upcoming is not None and self._take(upcoming[1], writer, part, known):
                    part.stop = upcoming[0] + 1
                    progress(part.stop)
                    upcoming = next(samples, None)
            if writer.samples:
                part.entry = writer.entry
                self.folder.save(number, part)
            parts.append(part)
        return parts

    def _take(self, sample: CheckedSample, writer: ShardWriter, part: Part, known: "_Known") -> bool:
        """Write a sample or count why not; False, and nothing done, where it belongs into the next shard."""
        reason, detail = (sample.reason, sample.detail) if sample.reason else known.duplicate(sample)
        copies = self.config.repeat_faces if sample.faces else 1
        if not reason and writer.samples:
            most = self.config.samples_per_shard
            size = writer.bytes + copies * stored_bytes(sample.members)
            if size > self.config.shard_bytes or (most is not None and writer.samples + copies > most):
                return False
        part.counts["read"] += 1
        line = {"key": sample.original_key, "where": sample.where}
        if reason:
            part.counts[f"dropped/{reason}"] += 1
            part.lines.append({**line, "dropped": reason, "detail": detail})
            return True
        for change in sample.changes:
            part.counts[f"changed/{change}"] += 1
        if unusual := [change for change in sample.changes if change not in _USUAL]:
            part.lines.append({**line, "changed": ", ".join(unusual)})
        for copy in range(1, copies + 1):
            key = known.unique(sample.key if copy == 1 else f"{sample.key}-copy{copy}")
            seen = (_key_hash(key), sample.pixels, sample.gradients)
            known.add(seen)
            part.seen.append(seen)
            writer.add(key, sample.members)
        part.counts["written"] += copies
        part.counts["repeated"] += copies - 1
        return True


class _Known:
    """Names and hashes of everything that is written, for the samples to come."""

    def __init__(self, config: MakeShardsConfig):
        self._mode = config.duplicates
        self._keys: set[bytes] = set()
        # where to go on looking for a free number: many shards may have the same names
        self._numbers: dict[bytes, int] = {}
        self._pixels: set[bytes] = set()
        self._near = NearIndex(config.near_distance)

    def add(self, seen: Seen) -> None:
        key, pixels, gradients = seen
        self._keys.add(key)
        if self._mode != "keep":
            # the second copy of a repeated sample finds its hashes there
            if self._mode == "near" and gradients is not None and pixels not in self._pixels:
                self._near.add(gradients)
            self._pixels.add(pixels)

    def duplicate(self, sample: CheckedSample) -> tuple[str, str]:
        """(reason, detail) of leaving a sample out as a duplicate; empty where it is none."""
        if self._mode != "keep" and sample.pixels in self._pixels:
            return "duplicate", "an earlier picture has the same pixels"
        if self._mode == "near" and sample.gradients is not None and self._near.holds_near(sample.gradients):
            return "near_duplicate", "an earlier picture looks the same"
        return "", ""

    def unique(self, key: str) -> str:
        """The key, or with a number behind it where it is taken."""
        found, wanted = key, _key_hash(key)
        while _key_hash(found) in self._keys:
            self._numbers[wanted] = number = self._numbers.get(wanted, 1) + 1
            found = f"{key}-{number}"
        return found


def _key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:8]


def _digest(source: Source, total: int) -> str:
    """Hash of sample names spread over the input: another input under the same path would not be continued."""
    count = min(total, _NAMES)
    # of shards of another size, not even the count need differ
    sizes = [str(size) for size in source.shard_sizes]
    names = [source.describe(number * total // count)[0] for number in range(count)]
    return hashlib.sha256("\n".join([*sizes, *names]).encode("utf-8", errors="replace")).hexdigest()[:16]

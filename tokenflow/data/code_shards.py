"""Writes the codes of a source's pictures to shards: `.codes.npy` + what lay beside the picture, a sample.

A shard appears under its final name only when complete, and its bytes are a function of source, tokenizer and batch
size: a killed process loses the shard it was at, and the next one makes it again. Shards of pictures are mirrored, one
by one and sample by sample, so that training sees codes in the order in which it would have seen the pictures; an
unusable picture keeps its place, without codes.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tokenflow.data.codes import CodesDescription, codes_of_source, write_description
from tokenflow.data.config import SourceConfig
from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.files import write_json
from tokenflow.data.samples import CODES_EXTENSION, BadSample, RawSample, Source
from tokenflow.data.shape_shards import write_shard
from tokenflow.data.sources import open_source
from tokenflow.data.transforms import center_crop, decode_image, to_array, to_tensor

FOLDER_SHARD = 8192
"""Samples a shard where the source has no shards of its own."""
Encode = Callable[[torch.Tensor], torch.Tensor]
"""Images float32 [b, 3, S, S] in [-1, 1] to codes int64 [b, L]."""
Row = tuple[RawSample, "np.ndarray | str"]
"""A sample, and its pixels uint8 [S, S, 3] or why there are none."""


@dataclass(frozen=True, kw_only=True)
class ShardSpan:
    """One shard to write: consecutive samples of the source."""

    name: str
    start: int
    stop: int


class CodeShards:
    """The encoding of one source into one folder; several processes share the work by rank."""

    def __init__(
        self,
        source: SourceConfig,
        folder: str | Path,
        *,
        description: CodesDescription,
        samples_per_shard: int | None = None,
    ):
        """Open the source and lay out the shards.

        Args:
            source: Pictures, in shards or a folder.
            folder: Where to write; made if need be.
            description: Of the codes.
            samples_per_shard: Cuts the samples anew; by default shards are mirrored, a folder is cut at FOLDER_SHARD.

        Raises:
            ValueError: There are no samples, or a size makes no sense.
        """
        if samples_per_shard is not None and samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {samples_per_shard}; expected at least 1")
        if (codes := codes_of_source(source)) is not None:
            raise ValueError(f"{source.path} holds codes of {codes}; expected pictures. Give what it was made from.")
        self.source = open_source(source)
        self.folder = Path(folder)
        self.description = description
        self.total = sum(self.source.shard_sizes)
        self.spans = _spans(self.source, samples_per_shard)
        self.described = {
            "path": os.path.abspath(source.path),
            "samples": self.total,
            "samples_per_shard": samples_per_shard,
            "shards": len(self.spans),
        }

    def done(self) -> list[ShardSpan]:
        """The shards that are complete."""
        return [span for span in self.spans if self._entry(span) is not None]

    def without_codes(self) -> int:
        """Samples of complete shards whose pictures could not be used."""
        return sum(entry["without_codes"] for entry in map(self._entry, self.spans) if entry is not None)

    def run(
        self,
        encode: Encode,
        *,
        batch_size: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[int], None] = lambda count: None,
    ) -> bool:
        """Write this rank's missing shards; whether the whole folder is complete afterwards.

        Args:
            encode: Images to codes.
            batch_size: Images at once; batches begin anew with every shard.
            num_workers: Processes that read and decode pictures.
            rank: Takes every `world_size`-th shard.
            world_size: Number of processes that share the work, now or one after the other.
            progress: Called with the number of samples that were just encoded.

        Raises:
            ValueError: The folder holds other codes; a rank that does not exist.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must lie in 0..{world_size - 1} (world_size {world_size})")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size {batch_size} must be at least 1 and num_workers {num_workers} at least 0")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_description(self.folder, self.description, source=self.described)
        for span in self.spans[rank::world_size]:
            if self._entry(span) is None:
                unusable: list[str] = []
                rows = self._rows(span, batch_size=batch_size, num_workers=num_workers)
                samples = self._samples(rows, encode, unusable=unusable, progress=progress)
                entry = write_shard(self.folder / span.name, samples)
                write_json(self._entry_path(span), {**entry, "without_codes": len(unusable)})
        return self._finish()

    def _rows(self, span: ShardSpan, *, batch_size: int, num_workers: int) -> Iterable[list[Row]]:
        return DataLoader(
            _Pictures(self.source, span, self.description.image_size),
            batch_size=batch_size,
            collate_fn=list,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(0),
        )

    def _samples(
        self,
        batches: Iterable[list[Row]],
        encode: Encode,
        *,
        unusable: list[str],
        progress: Callable[[int], None],
    ) -> Iterator[dict[str, Any]]:
        """Webdataset samples of one shard; `unusable` collects the keys of those without codes."""
        for rows in batches:
            pixels = [picture for _, picture in rows if not isinstance(picture, str)]
            codes = iter(())
            if pixels:
                codes = iter(encode(to_tensor(torch.from_numpy(np.stack(pixels)))).cpu().numpy())
            for raw, picture in rows:
                yield self._sample(raw, picture if isinstance(picture, str) else next(codes))
            unusable += [raw.key for raw, picture in rows if isinstance(picture, str)]
            progress(len(rows))

    def _sample(self, raw: RawSample, codes: np.ndarray | str) -> dict[str, Any]:
        """`codes` is the reason where there are none: every sample keeps the member, empty then, and so its place."""
        folder, _, name = raw.key.rpartition("/")
        # A dot would end the key and begin the extension.
        key = name.replace(".", "_") if not folder else f"{folder}/{name.replace('.', '_')}"
        sample: dict[str, Any] = {"__key__": key}
        if isinstance(codes, str):
            sample |= {CODES_EXTENSION: b"", "reason.txt": codes.encode()}
        else:
            sample[CODES_EXTENSION] = self.description.pack(codes)
        beside = {"txt": raw.text, "json": raw.record, "cls": raw.label}
        return sample | {name: content for name, content in beside.items() if content is not None}

    def _finish(self) -> bool:
        """Write the manifest if every shard is there, whoever wrote it."""
        entries = [self._entry(span) for span in self.spans]
        if not all(entries):
            return False
        content = {"codes": self.description.to_json(), "source": self.described}
        write_json(self.folder / MANIFEST_NAME, {**content, "samples": self.total, "shards": entries})
        return True

    def _entry(self, span: ShardSpan) -> dict[str, Any] | None:
        """What was noted of a shard when it was complete; None where it is not, or is not as it was."""
        noted, shard = self._entry_path(span), self.folder / span.name
        if not noted.is_file() or not shard.is_file():
            return None
        entry = json.loads(noted.read_text())
        return entry if entry["bytes"] == shard.stat().st_size else None

    def _entry_path(self, span: ShardSpan) -> Path:
        return self.folder / f".{span.name}.entry.json"


class _Pictures(Dataset):
    """The samples of a span."""

    def __init__(self, source: Source, span: ShardSpan, image_size: int):
        self.source = source
        self.span = span
        self.image_size = image_size

    def __len__(self) -> int:
        return self.span.stop - self.span.start

    def __getitem__(self, offset: int) -> Row:
        index = self.span.start + offset
        key, where = self.source.describe(index)
        raw = RawSample(key=key, where=where, image=None)
        try:
            raw = self.source.read(index)
            if raw.image is None:
                raise BadSample("it has codes already, and no picture")
            return raw, to_array(center_crop(decode_image(raw.image), self.image_size))
        except BadSample as error:
            return raw, str(error)


def _spans(source: Source, samples_per_shard: int | None) -> list[ShardSpan]:
    sizes = list(source.shard_sizes)
    size = samples_per_shard or (FOLDER_SHARD if len(sizes) == 1 and sizes[0] > FOLDER_SHARD else None)
    if size is not None:
        total = sum(sizes)
        sizes = [min(size, total - start) for start in range(0, total, size)]
    spans, start = [], 0
    for number, count in enumerate(sizes):
        spans.append(ShardSpan(name=f"codes-{number:06d}.tar", start=start, stop=start + count))
        start += count
    return spans

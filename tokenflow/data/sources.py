"""Opens the sources of a run and reads samples of them, in the mixture's global order or one after the other."""

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenflow.data.codes import codes_of
from tokenflow.data.config import DataConfig, SourceConfig
from tokenflow.data.face_index import faces_of_source
from tokenflow.data.face_order import FaceOrder
from tokenflow.data.folders import FolderSource
from tokenflow.data.hashing import mix
from tokenflow.data.mixture import Mixture
from tokenflow.data.order import SourceOrder
from tokenflow.data.samples import BadSample, RawSample, Source
from tokenflow.data.shards import ShardSource, expand_shards
from tokenflow.data.transforms import center_crop, decode_image, random_crop, to_planes

_MAX_ATTEMPTS = 32


def open_source(config: SourceConfig, *, at_least: int | None = None) -> Source:
    """The samples of a path; of shards, only the first that hold `at_least` samples, if that is given.

    Raises ValueError when there are none.
    """
    kind = config.kind
    if kind == "auto":
        is_folder = os.path.isdir(config.path)
        has_shards = is_folder and any(name.endswith(".tar") for name in os.listdir(config.path))
        kind = "folder" if is_folder and not has_shards else "shards"
    source: Source
    if kind == "folder":
        source = FolderSource(config.path)
    else:
        source = ShardSource(expand_shards(config.path), at_least=at_least)
    if not sum(source.shard_sizes):
        raise ValueError(f"source {config.path!r} holds no samples; are its shards empty or damaged?")
    return source


@dataclass(frozen=True, kw_only=True)
class SkippedSample:
    """A sample that could not be used."""

    key: str
    where: str
    """Its shard or file."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample ready for a batch."""

    pixels: np.ndarray | None
    """uint8 [S, S, 3]; None where the sources hold codes."""
    caption: str
    key: str
    seed: int
    """A function of (seed, source, epoch, sample): for draws that belong to the sample, such as caption drop."""
    record: dict[str, Any] | None
    codes: np.ndarray | None = None
    """int64 [L]; None where the sources hold pictures."""


class SampleReader:
    """Reads single samples of a run's sources; the same arguments give the same pixels in any process.

    With `at_least`, for `read_in_order` alone, it opens the first sources and shards that hold so many samples.
    """

    def __init__(self, config: DataConfig, *, seed: int, at_least: int | None = None):
        self.config = config
        self.seed = seed
        self.names = unique_names([(source.name, source.path) for source in config.sources])
        self.sources: list[Source] = []
        self.sizes: list[int] = []
        for source_config in config.sources:
            left = None if at_least is None else at_least - sum(self.sizes)
            if left is not None and left <= 0:
                break
            self.sources.append(open_source(source_config, at_least=left))
            self.sizes.append(sum(self.sources[-1].shard_sizes))
        self.codes = codes_of(replace(config, sources=config.sources[: len(self.sources)]))
        """Whose codes the sources hold; None where they hold pictures."""
        self.mixture = Mixture([source.weight for source in config.sources], seed=seed)
        self.orders = [self._order(number) for number in range(len(self.sources))]

    def read(self, position: int) -> tuple[Sample, list[SkippedSample]]:
        """The sample at a global position, and the unusable ones it stands in for.

        An unusable sample is replaced by another of the same source, chosen by the same numbers on every rank. Raises
        ValueError when the source seems to have no usable sample at all.
        """
        number, place = self.mixture[position]
        epoch, index = self.orders[number][place]
        skipped: list[SkippedSample] = []
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                index = self.orders[number].stand_in(place, mix(self.seed, number, epoch, place, attempt))
            try:
                return self._load(number, epoch, index, train=True), skipped
            except BadSample as error:
                skipped.append(self._skipped(number, index, error))
        first = skipped[0]
        raise ValueError(
            f"source {self.names[number]!r}: {_MAX_ATTEMPTS} samples in a row are unusable; expected pictures. "
            f"The first is {first.key} in {first.where}: {first.reason}"
        )

    def read_in_order(self, index: int) -> Sample | SkippedSample:
        """Sample `index` of all sources one after the other, centre crop, no flip, first caption."""
        for number, size in enumerate(self.sizes):
            if index < size:
                try:
                    return self._load(number, 0, index, train=False)
                except BadSample as error:
                    return self._skipped(number, index, error)
            index -= size
        raise IndexError("sample index beyond the last source")

    def _order(self, number: int) -> SourceOrder | FaceOrder:
        config, source = self.config.sources[number], self.sources[number]
        settings = {"seed": self.seed, "source": number, "window_shards": self.config.window_shards}
        if config.face_factor == 1:
            return SourceOrder(source.shard_sizes, **settings)
        having = faces_of_source(source, path=config.path)
        try:
            order = FaceOrder(having, factor=config.face_factor, **settings)
        except ValueError as error:
            raise ValueError(f"source {self.names[number]!r}: {error}") from error
        # part of the cursor: with another factor or index, a run cannot be resumed exactly
        self.names[number] += f" (faces x {config.face_factor:g}, index {order.digest})"
        return order

    def _load(self, number: int, epoch: int, index: int, *, train: bool) -> Sample:
        raw = self.sources[number].read(index)
        seed = mix(self.seed, number, epoch, index)
        rng = random.Random(seed)
        config = self.config
        codes = None if self.codes is None else self.codes.unpack(raw.codes)
        pixels = self._pixels(raw, rng=rng, train=train) if codes is None else None
        record = parse_record(raw)
        choices = record.get(config.captions_from) if train and config.captions == "any" and record else None
        caption = str(rng.choice(choices)) if choices else caption_of(raw, record)
        return Sample(
            pixels=pixels,
            caption=caption,
            key=raw.key,
            seed=seed,
            record=record if config.records else None,
            codes=codes,
        )

    def _pixels(self, raw: RawSample, *, rng: random.Random, train: bool) -> np.ndarray:
        config = self.config
        if raw.image is None:
            raise BadSample("it has codes and no picture, and lies in no folder that `tokenflow encode-shards` wrote")
        image = decode_image(raw.image)
        if train and config.crop == "random":
            image = random_crop(image, config.image_size, rng=rng, min_fraction=config.min_crop_fraction)
        else:
            image = center_crop(image, config.image_size)
        # channels last, and in memory first, as batches have them
        pixels = to_planes(image).transpose(1, 2, 0)
        if train and config.flip_probability and rng.random() < config.flip_probability:
            pixels = pixels[:, ::-1]
        return pixels

    def _skipped(self, number: int, index: int, error: BadSample) -> SkippedSample:
        key, where = self.sources[number].describe(index)
        return SkippedSample(key=key, where=where, reason=str(error))


def parse_record(raw: RawSample) -> dict[str, Any] | None:
    """The .json of a sample, with the class of a .cls; None where there is neither. Raises BadSample if damaged."""
    if raw.record is None and raw.label is None:
        return None
    try:
        record = {} if raw.record is None else json.loads(raw.record)
        label = {} if raw.label is None else {"cls": int(raw.label)}
    except ValueError as error:
        raise BadSample(f"its .json or .cls cannot be parsed: {error}") from error
    return label | (record if isinstance(record, dict) else {"value": record})


def read_captions(config: DataConfig, *, at_most: int) -> Iterator[str]:
    """Every caption of the first `at_most` usable samples of each source, in order; no picture is decoded."""
    for source_config in config.sources:
        source = open_source(source_config, at_least=at_most)
        for index in range(min(at_most, sum(source.shard_sizes))):
            try:
                raw = source.read(index)
                record = parse_record(raw) or {}
            except BadSample:
                # the loader names and counts it
                continue
            yield caption_of(raw, record)
            if config.captions == "any":
                yield from map(str, record.get(config.captions_from) or ())


def caption_of(raw: RawSample, record: dict[str, Any] | None) -> str:
    """The .txt, else "caption" of the .json, else nothing."""
    if raw.text is not None:
        # a stray byte in a caption is no reason to lose the picture
        return raw.text.decode("utf-8", errors="replace").strip()
    return str(record.get("caption") or "").strip() if record else ""


def unique_names(sources: Sequence[tuple[str | None, str]]) -> list[str]:
    """A name for every (name or None, path): the last part of the path where there is none, numbered if need be."""
    names: list[str] = []
    for given, path in sources:
        base = name = given or os.path.basename(path.rstrip("/")) or path
        while name in names:
            name = f"{base}#{names.count(base) + sum(other.startswith(base + '#') for other in names) + 1}"
        names.append(name)
    return names

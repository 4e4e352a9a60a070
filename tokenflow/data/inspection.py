"""What is in a set of shards, or in a folder: every sample is opened as training opens it, and counted.

Pictures are decoded whole, so that damage anywhere in them is found; shards are compared with their folder's
manifest.json. Nothing is changed, but for the index beside a shard that training makes too.
"""

import copy
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tokenflow.data.codes import CodesDescription, codes_of_source
from tokenflow.data.config import SourceConfig
from tokenflow.data.contents import NAMED, Contents, Inspection, Thumbnail, Unusable
from tokenflow.data.folders import FolderSource
from tokenflow.data.manifest_check import ManifestCheck, file_digest, listed_shards
from tokenflow.data.ordered_workers import WorkerDied, ordered_map
from tokenflow.data.samples import BadSample, RawSample, Source
from tokenflow.data.shards import ShardSource, index_shard
from tokenflow.data.sources import caption_of, open_source, parse_record
from tokenflow.data.transforms import center_crop, decode_image, to_array

_FILES_A_SPAN = 256
_REASONS = {
    "zero bytes": "empty",
    "decompression bomb": "bomb",
    "no known format": "not_a_picture",
    "floating-point": "float_pixels",
    "truncated": "truncated",
    "tar is damaged": "damaged_shard",
    ".json or .cls": "bad_record",
    "its codes": "bad_codes",
    "no codes": "without_codes",
    "no picture": "without_picture",
    "cannot be read": "unreadable",
}
"""Part of a message -> the code under which it is counted; anything else is "corrupt"."""


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Samples that one process looks at: a shard, or some files of a folder."""

    source: FolderSource | str
    """The files, or the path of the shard."""
    size: int
    picked: tuple[int, ...]
    """Those for the contact sheet."""
    expected: dict[str, Any] | None
    """The shard's entry in the manifest."""


def inspect(
    path: str,
    *,
    check: Literal["pixels", "headers"] = "pixels",
    workers: int = 0,
    pictures: int = 32,
    thumbnail_size: int = 128,
    progress: Callable[[int], None] = lambda samples: None,
) -> Inspection:
    """Look at every sample of a path: shards, a pattern of them, or a folder of pictures.

    Args:
        path: As in `SourceConfig.path`.
        check: pixels decodes every picture; headers only reads how large they say they are, and misses most damage.
        workers: Processes; the result is the same for any number. 0 does it here.
        pictures: For the contact sheet, evenly spread over all.
        thumbnail_size: Side of those, in pixels.
        progress: Is told how many samples are done, now and then.

    Raises:
        ValueError: There are no samples at all.
    """
    if os.path.isdir(path):
        # its complaint about a manifest of another kind is clearer than what counting would say
        listed_shards(path)
    source = open_source(SourceConfig(path=path))
    codes = codes_of_source(SourceConfig(path=path))
    spans = _spans(source, pictures=pictures)
    look = partial(_look, check=check, thumbnail_size=thumbnail_size, codes=codes)
    contents = Contents()
    for span, found in ordered_map(look, spans, workers=min(workers, len(spans))):
        contents.add(_after_death(span, found) if isinstance(found, WorkerDied) else found)
        progress(contents.samples)
    repeated_keys, repeated = _repeated(source, contents.keys)
    is_folder = isinstance(source, FolderSource)
    return Inspection(
        path=path,
        kind="folder" if is_folder else "shards",
        contents=contents,
        repeated_keys=repeated_keys,
        repeated=repeated,
        manifest=None if is_folder else ManifestCheck.of(_paths(source), contents.shards),
        codes=codes,
    )


def count(path: str) -> int:
    """Samples of a path, for a progress bar."""
    return sum(open_source(SourceConfig(path=path)).shard_sizes)


def _paths(source: Source) -> list[str]:
    assert isinstance(source, ShardSource)
    return source.paths


def _spans(source: Source, *, pictures: int) -> list[_Span]:
    total = sum(source.shard_sizes)
    wanted = min(pictures, total)
    picked = sorted({(2 * number + 1) * total // (2 * wanted) for number in range(wanted)})
    spans: list[_Span] = []
    start = 0
    for part, size, expected in _parts(source):
        inside = tuple(index - start for index in picked if start <= index < start + size)
        spans.append(_Span(source=part, size=size, picked=inside, expected=expected))
        start += size
    return spans


def _parts(source: Source) -> Iterator[tuple[FolderSource | str, int, dict[str, Any] | None]]:
    if isinstance(source, ShardSource):
        listed = {folder: listed_shards(folder) for folder in {os.path.dirname(path) for path in source.paths}}
        for path, size in zip(source.paths, source.shard_sizes, strict=True):
            yield path, size, listed[os.path.dirname(path)].get(os.path.basename(path))
        return
    assert isinstance(source, FolderSource)
    for start in range(0, len(source.files), _FILES_A_SPAN):
        part = copy.copy(source)
        part.files = source.files[start : start + _FILES_A_SPAN]
        yield part, len(part.files), None


def _after_death(span: _Span, died: WorkerDied) -> Contents:
    """What is known of a span at which a process ended: killed for memory, or a decoder's fault."""
    where = span.source.folder if isinstance(span.source, FolderSource) else span.source
    message = f"the process that looked at these {span.size} samples ended with status {died.exit_code}"
    found = Unusable(key="all", where=where, reason="process_died", message=message)
    contents = Contents(samples=span.size, unusable=[found], keys=[_hashes(_source(span), span.size)])
    contents.reasons["process_died"] = span.size
    if isinstance(span.source, str):
        contents.shards.append(_shard_row(span, unusable=span.size))
    return contents


def _look(
    span: _Span, *, check: Literal["pixels", "headers"], thumbnail_size: int, codes: CodesDescription | None
) -> Contents:
    source = _source(span)
    contents = Contents(samples=span.size, keys=[_hashes(source, span.size)])
    for index in range(span.size):
        key, where = source.describe(index)
        try:
            raw = source.read(index)
            record = parse_record(raw) or {}
            caption = caption_of(raw, record)
            _count(contents, raw, record, caption=caption)
            if raw.image is None:
                if codes is None:
                    raise BadSample("no picture among its members, and no folder of codes around it")
                codes.unpack(raw.codes)
                continue
            wanted = thumbnail_size if index in span.picked else 0
            thumbnail = _count_picture(contents, raw.image, check=check, thumbnail_size=wanted)
            if thumbnail is not None:
                contents.thumbnails.append(Thumbnail(key=key, caption=caption, pixels=thumbnail))
        except BadSample as error:
            found = Unusable(key=key, where=where, reason=reason_of(str(error)), message=str(error))
            contents.reasons[found.reason] += 1
            contents.unusable += [found] if len(contents.unusable) < NAMED else []
    if isinstance(span.source, str):
        contents.shards.append(_shard_row(span, unusable=sum(contents.reasons.values())))
    return contents


def _shard_row(span: _Span, *, unusable: int) -> dict[str, Any]:
    assert isinstance(span.source, str)
    hashed = span.expected is not None and "sha256" in span.expected
    return {
        "name": os.path.basename(span.source),
        "samples": len(index_shard(span.source)),
        "unusable": unusable,
        "bytes": os.stat(span.source).st_size,
        "sha256": file_digest(Path(span.source)) if hashed else None,
    }


def _count(contents: Contents, raw: RawSample, record: dict[str, Any], *, caption: str) -> None:
    faces = record.get("faces")
    known = isinstance(faces, dict) and isinstance(faces.get("count"), int)
    found = {
        "caption": bool(caption),
        "captions": isinstance(record.get("captions"), list) and len(record["captions"]) > 1,
        "record": raw.record is not None,
        "codes": raw.codes is not None,
        "faces_known": known,
        "faces": known and faces["count"] > 0,
        "recaptioned": "recaption" in record,
        "broken_utf8": raw.text is not None and "\ufffd" in caption,
    }
    contents.counts.update({name: 1 for name, holds in found.items() if holds})
    contents.histograms.count("caption_words", len(caption.split()))
    if known:
        contents.histograms.count("faces", faces["count"])


def _count_picture(
    contents: Contents, content: bytes, *, check: Literal["pixels", "headers"], thumbnail_size: int
) -> np.ndarray | None:
    """Count one picture; its thumbnail if a size is given. Raises BadSample when it cannot be used."""
    contents.picture_bytes += len(content)
    kind, size = _header(content)
    image = decode_image(content) if check == "pixels" or thumbnail_size or kind == "unknown" else None
    # once turned upright
    width, height = size if image is None else image.size
    contents.formats[kind] += 1
    contents.histograms.count("short_side", min(width, height))
    contents.histograms.count("aspect", width / height)
    contents.histograms.count("kilobytes", len(content) / 1000)
    return to_array(center_crop(image, thumbnail_size)) if image is not None and thumbnail_size else None


def _header(content: bytes) -> tuple[str, tuple[int, int]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
        return (image.format or "unknown").lower(), image.size
    except Exception:
        # decoders of damaged files raise nearly anything; decoding says what is wrong
        return "unknown", (0, 0)


def reason_of(message: str) -> str:
    """The code of what is wrong with a sample."""
    return next((code for part, code in _REASONS.items() if part in message), "corrupt")


def _source(span: _Span) -> Source:
    return span.source if isinstance(span.source, FolderSource) else ShardSource([span.source])


def _hashes(source: Source, size: int) -> np.ndarray:
    """64 bits of every key, uint64."""
    keys = (source.describe(index)[0].encode("utf-8", "surrogateescape") for index in range(size))
    return np.frombuffer(b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys), np.uint64)


def _repeated(
    source: Source, hashes: list[np.ndarray], *, named: int = 20
) -> tuple[int, tuple[tuple[str, str, str], ...]]:
    """How many samples repeat an earlier one's key, and (key, first place, this place) of the first few."""
    together = np.concatenate(hashes)
    order = np.argsort(together, kind="stable")
    follows = np.flatnonzero(together[order[1:]] == together[order[:-1]]) + 1
    examples = []
    for place in sorted(follows.tolist(), key=lambda place: order[place])[:named]:
        first = int(np.searchsorted(together[order], together[order[place]]))
        key, where = source.describe(int(order[place]))
        examples.append((key, source.describe(int(order[first]))[1], where))
    return len(follows), tuple(examples)

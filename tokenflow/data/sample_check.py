"""One sample on its way into a data set: name, caption and metadata made safe, the picture checked."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tokenflow.data.picture_check import BadPicture, PictureConfig, check_picture
from tokenflow.data.samples import BadSample, RawSample, Source

_ODD = re.compile(r"[^A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+")
_KEY_LENGTH = 80


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """What captions must be."""

    min_length: int = 0
    """Samples with a shorter caption are left out, in characters."""
    max_length: int | None = None
    """Samples with a longer caption are left out, in characters."""
    encoding: str = "cp1252"
    """How captions that are not UTF-8 are read; bytes that do not fit become U+FFFD."""

    def __post_init__(self) -> None:
        if self.min_length < 0:
            raise ValueError(f"min_length is {self.min_length} characters; expected at least 0")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"max_length is {self.max_length} characters; expected at least {self.min_length}")
        try:
            b"".decode(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding is {self.encoding!r}; expected a name such as cp1252 or shift_jis") from error


@dataclass(frozen=True, kw_only=True)
class CheckedSample:
    """A sample ready to be written, or why it is left out."""

    key: str
    """Safe inside a tar; not yet unique."""
    original_key: str
    where: str
    members: dict[str, bytes] = field(default_factory=dict)
    """Extension to content; empty where the sample is left out."""
    reason: str | None = None
    """Code under which it is left out."""
    detail: str = ""
    """What exactly is wrong with it."""
    changes: tuple[str, ...] = ()
    """Codes of what was mended."""
    pixels: bytes = b""
    gradients: int | None = None
    faces: int = 0
    """record["faces"]["count"]."""


@dataclass(frozen=True, kw_only=True)
class SampleChecker:
    """Checks samples of a source by their index; can be sent to worker processes."""

    source: Source
    pictures: PictureConfig = field(default_factory=PictureConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    gradients: bool = False
    """Whether to hash gradients too, for near-duplicates."""

    def __call__(self, indices: Iterable[int]) -> list[CheckedSample]:
        """Check these samples, in order; never raises for what is wrong with one of them."""
        return [self._check(index) for index in indices]

    def _check(self, index: int) -> CheckedSample:
        key, where = self.source.describe(index)
        bad = {"key": safe_key(key, index=index), "original_key": _printable(key), "where": _printable(where)}
        try:
            raw = self.source.read(index)
            return self._sample(raw, index=index)
        except BadPicture as error:
            return CheckedSample(**bad, reason=error.reason, detail=_printable(str(error)))
        except BadSample as error:
            return CheckedSample(**bad, reason="unreadable", detail=_printable(str(error)))
        except Exception as error:
            # whatever one sample of a billion holds, the others are written, and this one is named
            return CheckedSample(**bad, reason="failed", detail=_printable(f"{type(error).__name__}: {error}"))

    def _sample(self, raw: RawSample, *, index: int) -> CheckedSample:
        if raw.image is None:
            raise BadPicture("no_picture", "it has no picture")
        changes = []
        key = safe_key(raw.key, index=index)
        record, readable = _parse(raw.record)
        if not readable:
            changes.append("metadata_dropped")
        caption, known = decode_caption(raw.text, record, encoding=self.captions.encoding)
        if not known:
            changes.append("caption_recoded")
        _filter_caption(caption, self.captions)
        picture = check_picture(raw.image, config=self.pictures, gradients=self.gradients)
        if picture.scale != 1:
            _scale_faces(record, picture.scale)
        if key != raw.key:
            changes.append("renamed")
            record.setdefault("original_key", _printable(raw.key))
        if caption:
            record["caption"] = caption
        record |= {"width": picture.width, "height": picture.height, "sha256": picture.sha256}
        members = {picture.extension: picture.content, "json": _to_json(record)}
        if caption or raw.text is not None:
            members["txt"] = caption.encode("utf-8", errors="replace")
        if raw.label is not None:
            members["cls"] = raw.label
        return CheckedSample(
            key=key,
            original_key=_printable(raw.key),
            where=_printable(raw.where),
            members=members,
            changes=(*changes, *picture.changes),
            pixels=picture.pixels,
            gradients=picture.gradients,
            faces=_count_faces(record),
        )


def safe_key(key: str, *, index: int) -> str:
    """A name that is safe in a tar and on any disk: ASCII letters, digits, `_`, `-`, and `/` between folders.

    No part is empty, `.`, `..`, or begins with `_` or `-` (webdataset skips `__`); dots are gone, for webdataset ends
    the key at the first. Accents are taken off, anything else odd becomes `_`; a name without a letter or digit left
    becomes one of `index`. Long names end in a hash of the whole.
    """
    letters = unicodedata.normalize("NFKD", key.replace("\\", "/"))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    parts = [_ODD.sub("_", part).lstrip("_-") for part in plain.split("/")]
    safe = "/".join(part for part in parts if part)
    if not re.search("[A-Za-z0-9]", safe):
        return f"sample-{index:09d}"
    if len(safe) > _KEY_LENGTH:
        safe = f"{safe[: _KEY_LENGTH - 17].rstrip('/')}-{hashlib.sha256(_printable(key).encode()).hexdigest()[:16]}"
    return safe


def decode_caption(text: bytes | None, record: dict[str, Any], *, encoding: str) -> tuple[str, bool]:
    """(caption, whether it was clean UTF-8): of the text, else "caption" of the record, else empty."""
    known = True
    if text is None:
        value = record.get("caption")
        caption = value if isinstance(value, str) else ""
    else:
        try:
            caption = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            known = False
            wide = text[:2] in (b"\xff\xfe", b"\xfe\xff")
            caption = text.decode("utf-16" if wide else encoding, errors="replace")
    clean = _printable(_CONTROL.sub(" ", caption)).strip()
    return clean, known


def _filter_caption(caption: str, config: CaptionConfig) -> None:
    if len(caption) < config.min_length:
        raise BadPicture("caption_too_short", f"{len(caption)} characters, fewer than {config.min_length}")
    if config.max_length is not None and len(caption) > config.max_length:
        raise BadPicture("caption_too_long", f"{len(caption)} characters, more than {config.max_length}")


def _parse(content: bytes | None) -> tuple[dict[str, Any], bool]:
    """The record, and whether it could be read; what is no object becomes {"value": ...}, as in training."""
    if content is None:
        return {}, True
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return {}, False
    return (record if isinstance(record, dict) else {"value": record}), True


def _to_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _count_faces(record: dict[str, Any]) -> int:
    faces = record.get("faces")
    count = faces.get("count") if isinstance(faces, dict) else None
    return count if isinstance(count, int) else 0


def _scale_faces(record: dict[str, Any], scale: float) -> None:
    """Boxes are in pixels of the stored picture, which is now smaller."""
    faces = record.get("faces")
    boxes = faces.get("boxes") if isinstance(faces, dict) else None
    if isinstance(boxes, list):
        faces["boxes"] = [[round(value * scale) for value in box] for box in boxes]


def _printable(text: str) -> str:
    """Without the lone surrogates of undecodable file names, which cannot be written as UTF-8."""
    return text.encode("utf-8", errors="replace").decode()

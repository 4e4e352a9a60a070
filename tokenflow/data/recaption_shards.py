"""Shards on their way to new captions: what lies in them, and how a new one is written, all else kept as it was."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenflow.data.recaption_check import CaptionCheck, clean_answer
from tokenflow.data.sample_check import decode_caption, safe_key
from tokenflow.data.samples import IMAGE_EXTENSIONS
from tokenflow.data.shard_writer import ShardEntry, ShardWriter
from tokenflow.data.shards import index_shard

_ENCODING = "cp1252"


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample with everything that lies under its key."""

    position: int
    key: str
    members: dict[str, bytes]
    """By extension, in the order of the shard."""
    damage: str = ""
    """Why it cannot be read; empty where it can."""

    @property
    def image(self) -> bytes | None:
        """Its picture, the one that training reads; None where there is none."""
        return next((self.members[extension] for extension in IMAGE_EXTENSIONS if extension in self.members), None)

    @property
    def record(self) -> dict[str, Any] | None:
        """Its .json; empty where there is none, None where it cannot be parsed."""
        try:
            content = json.loads(self.members.get("json", b"{}"))
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else {"value": content}

    @property
    def caption(self) -> str:
        """Its .txt, else "caption" of its .json, else nothing."""
        return decode_caption(self.members.get("txt"), self.record or {}, encoding=_ENCODING)[0]


@dataclass(kw_only=True)
class ShardReport:
    """What became of the samples of a shard."""

    counts: Counter[str] = field(default_factory=Counter)
    """read, written, recaptioned, kept/REASON, dropped/REASON, changed/CODE."""
    lines: list[dict[str, str]] = field(default_factory=list)
    """Samples that did not get a new caption."""
    entry: ShardEntry | None = None
    """Of the new shard, which may be empty; None until it is complete."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        entry = None if self.entry is None else self.entry.to_json()
        return {"entry": entry, "counts": dict(self.counts), "lines": self.lines}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ShardReport":
        """The report that `to_json` described."""
        entry = None if content["entry"] is None else ShardEntry(**content["entry"])
        return cls(counts=Counter(content["counts"]), lines=content["lines"], entry=entry)


def read_shard(path: str, *, wanted: Callable[[int, str], bool] | None = None) -> Iterator[StoredSample]:
    """The samples of a shard in order.

    Args:
        path: The .tar.
        wanted: Called with (position, key): whether to read that sample; by default all are.
    """
    with open(path, "rb") as stream:
        for position, (key, spans) in enumerate(index_shard(path)):
            if wanted is not None and not wanted(position, key):
                continue
            if not spans:
                yield StoredSample(position=position, key=key, members={}, damage="the tar is damaged from here on")
                continue
            members = {}
            for extension, (offset, size) in spans.items():
                stream.seek(offset)
                members[extension] = stream.read(size)
            cut = any(len(members[extension]) != size for extension, (_, size) in spans.items())
            yield StoredSample(position=position, key=key, members=members, damage="truncated shard?" if cut else "")


def rewrite_shard(
    source: str,
    target: Path,
    *,
    noted: Mapping[tuple[int, str], dict[str, Any]],
    check: CaptionCheck,
    model: str,
    prompt: str,
) -> ShardReport:
    """Write `target` from `source` and the noted answers; it appears whole or not at all.

    Args:
        source: The shard as it was.
        target: The new one.
        noted: Of the journal, for every sample with a picture.
        check: What answers must be.
        model: For the samples' records.
        prompt: Name of the prompt, for the same.
    """
    report = ShardReport()
    with ShardWriter(target) as writer:
        for sample in read_shard(source):
            report.counts["read"] += 1
            line = {"key": sample.key, "where": source}
            if sample.damage:
                report.counts["dropped/unreadable"] += 1
                report.lines.append({**line, "dropped": "unreadable", "detail": sample.damage})
                continue
            members, reason, detail = sample.members, "no_picture", "it has no picture"
            if sample.image is not None:
                caption, reason, detail = judge(noted[sample.position, sample.key], check=check)
            if reason:
                report.counts[f"kept/{reason}"] += 1
                report.lines.append({**line, "kept": reason, "detail": detail})
            else:
                report.counts["recaptioned"] += 1
                if sample.record is None:
                    report.counts["changed/metadata_dropped"] += 1
                members = with_caption(sample, caption, model=model, prompt=prompt)
            writer.add(safe_stored_key(sample), members)
            report.counts["written"] += 1
    report.entry = writer.entry
    return report


def judge(noted: Mapping[str, Any], *, check: CaptionCheck) -> tuple[str, str, str]:
    """(caption, code, detail) of what the journal holds of a sample; the code is empty where the caption is good."""
    if noted.get("failure"):
        return "", noted["failure"], noted.get("detail", "")
    caption = clean_answer(noted["answer"])
    return caption, *check.rejection(caption, cut=noted.get("cut", False))


def with_caption(sample: StoredSample, caption: str, *, model: str, prompt: str) -> dict[str, bytes]:
    """The members of a sample with a new caption, the old one beside it."""
    record = sample.record or {}
    old = sample.caption
    listed = record.get("captions")
    others = [str(other) for other in listed] if isinstance(listed, list) else []
    record |= {
        "caption": caption,
        # each once, none empty, in this order
        "captions": [other for other in dict.fromkeys([caption, old, *others]) if other],
        "recaption": {"model": model, "prompt": prompt},
    }
    # of what was captioned twice, the first is the original
    record.setdefault("original_caption", old)
    content = json.dumps(record, separators=(",", ":")).encode()
    return sample.members | {"txt": caption.encode(), "json": content}


def safe_stored_key(sample: StoredSample) -> str:
    """The key as it was, unless unpacking it would write elsewhere."""
    parts = sample.key.split("/")
    harmless = sample.key.isprintable() and not any(part in ("", ".", "..") for part in parts)
    return sample.key if harmless else safe_key(sample.key, index=sample.position)

"""New captions for pictures in shards: asked for, noted one by one, written to new shards, one for each old one.

In the new folder, a hidden one holds a journal and, once a shard is complete, a report for each shard. A process works
on one shard at a time, under a lock on its journal; what is noted is never asked for again. Parts share the shards out
by number and write no file of another part; whichever finds all shards complete writes the manifest, which is the same
whoever does.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenflow.data.files import write_json
from tokenflow.data.manifest import write_manifest
from tokenflow.data.manifest_check import listed_shards
from tokenflow.data.recaption_backend import CaptionAnswer, CaptionConfig, Captioner, CaptionerGone, CaptionRequest
from tokenflow.data.recaption_check import CaptionCheck
from tokenflow.data.recaption_journal import Journal, read_journal
from tokenflow.data.recaption_prompts import Prompt
from tokenflow.data.recaption_shards import ShardReport, StoredSample, read_shard, rewrite_shard
from tokenflow.data.settings import first_difference
from tokenflow.data.shard_writer import ShardEntry
from tokenflow.data.shards import ShardSource, expand_shards

_FOLDER = ".recaption"
_SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class RecaptionConfig:
    """What decides the new captions."""

    model: str
    """Name or path."""
    prompt: Prompt
    """What is asked."""
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    """How it is asked."""
    check: CaptionCheck = field(default_factory=CaptionCheck)
    """What answers must be."""


@dataclass(frozen=True, kw_only=True)
class _Shard:
    source: str
    name: str
    """Of the new one."""
    samples: int


class Recaptioning:
    """The recaptioning of one set of shards into one folder; with the same arguments it continues where it stopped."""

    def __init__(self, path: str, folder: str | Path, *, config: RecaptionConfig, part: int = 0, parts: int = 1):
        """Look at what is there; writes nothing.

        Args:
            path: Shards, a folder or a pattern of them.
            folder: Where to write; made if need be.
            config: What to ask for.
            part: Works on every `parts`-th shard from this one on.
            parts: Processes that share the work, now or one after the other.

        Raises:
            ValueError: There are no shards or samples, the folder is the input's or was begun with other settings.
        """
        if not 0 <= part < parts:
            raise ValueError(f"part is {part} of {parts}; expected 0 to parts - 1")
        if os.path.isdir(path) and not any(name.endswith(".tar") for name in os.listdir(path)):
            raise ValueError(
                f"{path!r} holds no .tar shards; expected some. Make them of pictures with `tokenflow make-shards`"
            )
        paths = expand_shards(path)
        if any(os.path.realpath(os.path.dirname(shard)) == os.path.realpath(folder) for shard in paths):
            raise ValueError(f"--out is {str(folder)!r}, which holds the input; choose another folder")
        source = ShardSource(paths)
        self.config = config
        self.folder = Path(folder)
        self.total = sum(source.shard_sizes)
        if not self.total:
            raise ValueError(f"{path!r} holds no samples; are its shards empty or damaged?")
        self.shards = [
            _Shard(source=shard, name=f"shard-{number:06d}.tar", samples=samples)
            for number, (shard, samples) in enumerate(zip(paths, source.shard_sizes, strict=True))
        ]
        self.mine = self.shards[part::parts]
        described = {"path": os.path.abspath(path), "samples": self.total, "shards": _digest(paths)}
        self.settings = json.loads(json.dumps({"input": described, **asdict(config)}))
        self._hidden = self.folder / _FOLDER
        self._compare()
        listed = listed_shards(str(self.folder)).values()
        self._listed = {entry["name"]: ShardEntry(**entry) for entry in listed}

    def done(self) -> tuple[int, int]:
        """(samples of this part that need not be asked for, its finished shards)."""
        finished = [shard for shard in self.mine if self._report(shard) is not None]
        noted = sum(len(self._noted(shard)) for shard in self.mine if shard not in finished)
        return sum(shard.samples for shard in finished) + noted, len(finished)

    def requests(self) -> Iterator[CaptionRequest]:
        """What will be asked, of the samples that are not done with yet."""
        for shard in self.mine:
            if self._report(shard) is None:
                noted = self._noted(shard)
                yield from self._requests(shard, wanted=lambda *sample, noted=noted: sample not in noted)

    def run(
        self, captioner: Captioner, *, stop_after: int = 16, progress: Callable[[int], None] = lambda done: None
    ) -> dict[str, Any]:
        """Caption and write this part's missing shards; the report of this part.

        Args:
            captioner: Answers.
            stop_after: Samples in a row without an answer, all tries included, after which the run stops.
            progress: Called with the samples of this part that are done with.

        Raises:
            CaptionerUnusable: The captioner cannot work as it is set up.
            CaptionerGone: `stop_after` was reached; a later run continues.
            ValueError: Another process works on one of the shards.
        """
        if stop_after < 1:
            raise ValueError(f"stop_after is {stop_after}; expected at least 1")
        self._hidden.mkdir(parents=True, exist_ok=True)
        write_json(self._hidden / _SETTINGS, self.settings)
        before = 0
        for shard in self.mine:
            if self._report(shard) is None:
                self._make(shard, captioner, stop_after=stop_after, progress=lambda n, b=before: progress(b + n))
            before += shard.samples
            progress(before)
        complete = self._finish()
        reports = [report for report in map(self._report, self.mine) if report is not None]
        return {"complete": complete, "shards": len(reports), **_summary(reports)}

    def _make(self, shard: _Shard, captioner: Captioner, *, stop_after: int, progress: Callable[[int], None]) -> None:
        with Journal(self._journal_path(shard), shard=shard.name) as journal:
            requests = self._requests(shard, wanted=lambda *sample: journal.get(*sample) is None)
            answers = captioner.answers(requests)
            try:
                _note(answers, journal, stop_after=stop_after, progress=progress)
            finally:
                if hasattr(answers, "close"):
                    answers.close()
            report = rewrite_shard(
                shard.source,
                self.folder / shard.name,
                noted=journal.noted,
                check=self.config.check,
                model=self.config.model,
                prompt=self.config.prompt.name,
            )
            write_json(self._report_path(shard), report.to_json())

    def _requests(self, shard: _Shard, *, wanted: Callable[[int, str], bool]) -> Iterator[CaptionRequest]:
        for sample in read_shard(shard.source, wanted=wanted):
            if not sample.damage and sample.image is not None:
                yield self._request(sample, sample.image)

    def _request(self, sample: StoredSample, image: bytes) -> CaptionRequest:
        prompt = self.config.prompt.about(sample.caption)
        return CaptionRequest(position=sample.position, key=sample.key, image=image, prompt=prompt)

    def _finish(self) -> bool:
        """Write manifest and report if every shard is there; whether it is."""
        reports = [report for report in map(self._report, self.shards) if report is not None]
        if len(reports) < len(self.shards):
            return False
        entries = (report.entry for report in reports if report.entry is not None)
        lines = (line for report in reports for line in report.lines)
        write_manifest(self.folder, entries, lines=lines, settings=self.settings, report=_summary(reports))
        return True

    def _compare(self) -> None:
        """Raises ValueError where the folder is not this run's."""
        path = self._hidden / _SETTINGS
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.glob("*.tar")):
                raise ValueError(f"{str(self.folder)!r} holds other shards; choose an empty or new folder for --out")
            return
        if not self._has_answers():
            return
        if difference := first_difference(self.settings, json.loads(path.read_text())):
            raise ValueError(
                f"{str(self.folder)!r} was begun with other settings: {difference}. Give the same to continue, or "
                "another folder for --out"
            )

    def _has_answers(self) -> bool:
        """Whether any part of the run has noted anything yet."""
        return any(path.stat().st_size for path in self._hidden.glob("shard-*"))

    def _report(self, shard: _Shard) -> ShardReport | None:
        """Of a finished shard that is still there; None otherwise."""
        path = self._report_path(shard)
        if not path.is_file():
            return None
        report = ShardReport.from_json(json.loads(path.read_text()))
        target = self.folder / shard.name
        size = target.stat().st_size if target.is_file() else None
        # find-faces writes shards anew, and says so in the manifest
        for entry in (self._listed.get(shard.name), report.entry):
            if entry is not None and entry.bytes == size:
                report.entry = entry
                return report
        return None

    def _noted(self, shard: _Shard) -> dict[tuple[int, str], dict[str, Any]]:
        return read_journal(self._journal_path(shard), shard=shard.name)[0]

    def _journal_path(self, shard: _Shard) -> Path:
        return (self._hidden / shard.name).with_suffix(".jsonl")

    def _report_path(self, shard: _Shard) -> Path:
        return (self._hidden / shard.name).with_suffix(".json")


def _note(
    answers: Iterator[CaptionAnswer], journal: Journal, *, stop_after: int, progress: Callable[[int], None]
) -> None:
    """Note every answer. A failure is noted once the captioner has answered another sample since: one that is gone
    would otherwise leave a set without captions."""
    unsure: list[CaptionAnswer] = []
    for answer in answers:
        if answer.failure == "failed":
            unsure.append(answer)
            if len(unsure) >= stop_after:
                raise CaptionerGone(_gone(unsure))
            continue
        _add(journal, [answer] if answer.failure else [*unsure, answer])
        unsure = unsure if answer.failure else []
        progress(len(journal))
    if unsure and not any("answer" in noted for noted in journal.noted.values()):
        raise CaptionerGone(_gone(unsure))
    _add(journal, unsure)


def _add(journal: Journal, answers: list[CaptionAnswer]) -> None:
    for answer in answers:
        content: dict[str, Any] = {"answer": answer.text, "cut": answer.cut}
        if answer.failure:
            content = {"failure": answer.failure, "detail": answer.detail}
        journal.add(answer.position, answer.key, content)


def _gone(unsure: list[CaptionAnswer]) -> str:
    last = unsure[-1]
    return (
        f"{len(unsure)} samples in a row got no answer, the last {last.key}: {last.detail}. Nothing is lost: when the "
        "model answers again, the same command continues"
    )


def _summary(reports: list[ShardReport]) -> dict[str, Any]:
    counts: Counter[str] = sum((report.counts for report in reports), Counter())
    summary: dict[str, Any] = {name: counts[name] for name in ("read", "written", "recaptioned")}
    for group in ("kept", "dropped", "changed"):
        found = sorted(name for name in counts if name.startswith(f"{group}/"))
        summary[group] = {name.partition("/")[2]: counts[name] for name in found}
    return summary


def _digest(paths: list[str]) -> str:
    """Hash of names and sizes of the shards: another input under the same path would not be continued."""
    names = [f"{os.path.basename(path)} {os.path.getsize(path)}" for path in paths]
    return hashlib.sha256("\n".join(names).encode("utf-8", errors="replace")).hexdigest()[:16]

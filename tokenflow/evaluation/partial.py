"""An evaluation that is killed goes on where it was: each rank's sums on disk, and what they are sums of.

A folder `partial/` beside the result holds `fingerprint.json` (what is evaluated, and how it is split) and a file a
rank. The sums of a rank depend on no other rank, so ranks save when they like and may continue at different batches.
Every file is written whole or not at all.
"""

import io
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tokenflow.evaluation.measure import write_atomic, write_json

Fingerprint = Mapping[str, Any]
"""Names and plain values; equal fingerprints, equal results."""

SPLIT = ("world_size", "batch_size", "device", "versions")
"""Entries of a fingerprint that a finished result does not depend on; sums that are to be continued do."""

State = Literal["new", "partial", "finished"]


def find_state(folder: Path, fingerprint: Fingerprint) -> State:
    """What an output folder has of the evaluation with this fingerprint.

    Raises ValueError when the folder holds another evaluation, finished or not.
    """
    begun = _read(folder / "partial" / "fingerprint.json")
    if begun is not None:
        _refuse_another(folder, held="another, unfinished evaluation", there=begun, now=_plain(fingerprint))
        return "partial"
    result = _read(folder / "result.json")
    if result is None:
        return "new"
    there = result.get("fingerprint") or {}
    there, now = ({k: v for k, v in entries.items() if k not in SPLIT} for entries in (there, _plain(fingerprint)))
    _refuse_another(folder, held="another evaluation", there=there, now=now)
    return "finished"


def begin(folder: Path, fingerprint: Fingerprint) -> None:
    """Forget what `partial/` holds, and note what is evaluated now. One rank calls, before the others go on."""
    discard(folder)
    write_json(folder / "partial" / "fingerprint.json", dict(fingerprint))


def discard(folder: Path) -> None:
    """Remove `partial/`."""
    # The fingerprint first: what a removal that is killed leaves behind then belongs to no evaluation.
    (folder / "partial" / "fingerprint.json").unlink(missing_ok=True)
    if (folder / "partial").is_dir():
        shutil.rmtree(folder / "partial")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a rank's file holds."""

    batches: int
    """Batches of this rank that are counted in `evaluation`."""
    evaluation: dict[str, Any]
    """`TokenizerEvaluation.state_dict()`."""
    skipped: list[list[str]]
    """(key, where, reason) of the samples left out so far."""


class PartialFile:
    """One rank's file in `partial/`: read once at the start, written every so many seconds.

    It carries the fingerprint too: on a machine that does not see rank 0's folder nobody else would notice a file
    that another evaluation left behind.
    """

    def __init__(self, folder: Path, *, fingerprint: Fingerprint, rank: int, every_seconds: float) -> None:
        self.path = folder / "partial" / f"rank_{rank:05d}.pt"
        self.every_seconds = every_seconds
        self._fingerprint = json.dumps(dict(fingerprint), sort_keys=True)
        self._last = time.monotonic()

    def load(self, device: torch.device) -> Saved | None:
        """What was saved last, tensors where they were (on `device` for an accelerator's); or None."""
        for left_over in self.path.parent.glob(f".{self.path.name}.*"):
            left_over.unlink()
        if not self.path.is_file():
            return None
        content = torch.load(
            self.path,
            weights_only=True,
            map_location=lambda storage, place: storage if place == "cpu" else storage.to(device=device),
        )
        return Saved(**content) if content.pop("fingerprint") == self._fingerprint else None

    def save_if_due(self, saved: Callable[[], Saved]) -> bool:
        """Write `saved()` when `every_seconds` have passed since the last time; whether it did."""
        if time.monotonic() - self._last < self.every_seconds:
            return False
        buffer = io.BytesIO()
        torch.save({"fingerprint": self._fingerprint, **vars(saved())}, buffer)
        write_atomic(self.path, buffer.getvalue())
        self._last = time.monotonic()
        return True

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _refuse_another(folder: Path, *, held: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    names = [name for name in {**now, **there} if there.get(name) != now.get(name)]
    if not names:
        return
    shown = "; ".join(
        f"{name} was {there.get(name, 'not noted')}, is {now.get(name, 'not noted')}" for name in names[:4]
    )
    more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
    raise ValueError(f"{folder} holds {held} ({shown}{more}). Give another --output, or --resume none to replace it.")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Remove it, or give another --output.") from error
    return content if isinstance(content, dict) else {}


def _plain(fingerprint: Fingerprint) -> dict[str, Any]:
    """As it reads back from JSON."""
    return json.loads(json.dumps(dict(fingerprint)))

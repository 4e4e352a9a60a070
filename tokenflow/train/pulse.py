"""Signs of life: each rank's small file that says where it is, and what two looks at all of them tell.

A rank's clock means nothing to another machine, so nobody compares times: a rank looks twice, and what counts is
which numbers moved between the two looks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What a rank says of itself every few seconds."""

    host: str
    """The machine's name."""
    pid: int
    """The process's number there."""
    beat: int
    """Grows by one with every pulse: as long as it grows, the process runs."""
    progress: int
    """Grows whenever the main thread goes over to another phase; all ranks go through the same ones in order."""
    step: int
    """The step that the main thread is in."""
    phase: str
    """What it is doing there: loading, computing, ..."""
    slow: bool
    """Whether that may take long: the first step, an evaluation, a checkpoint."""
    place: str = ""
    """Where the main thread is in the code; only said when it has been there for long."""
    waiting: bool = False
    """Whether it is waiting for the others in a collective; likewise."""
    ended: str = ""
    """Why this rank no longer trains; empty while it does."""
    lost_others: bool = False
    """Whether it ended because others were gone."""


def pulse_file(folder: Path, rank: int) -> Path:
    """Where a rank's pulse is."""
    return folder / f"rank_{rank:05d}.json"


def write_pulse(folder: Path, rank: int, pulse: Pulse) -> None:
    """Replace a rank's pulse in one go; a reader never sees half of one."""
    partial = folder / f".rank_{rank:05d}"
    partial.write_text(json.dumps(dataclasses.asdict(pulse)))
    os.replace(partial, pulse_file(folder, rank))


def read_pulses(folder: Path, world_size: int) -> list[Pulse | None]:
    """Every rank's newest pulse; None where there is none."""
    return [_read(pulse_file(folder, rank)) for rank in range(world_size)]


def _read(path: Path) -> Pulse | None:
    try:
        return Pulse(**json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def main_thread_place() -> tuple[str, bool]:
    """Where the main thread is (`file:line function`), and whether some thread waits in a collective."""
    frames = sys._current_frames()
    own = threading.get_ident()
    waiting = any(_in_collective(frame) for thread, frame in frames.items() if thread != own)
    innermost = frames[threading.main_thread().ident or 0]
    code = innermost.f_code
    return f"{Path(code.co_filename).name}:{innermost.f_lineno} {code.co_name}", waiting


def _in_collective(frame) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.parent.name == "distributed" and path.parent.parent.name == "torch"


@dataclass(frozen=True)
class Finding:
    """A rank that holds up the others, and why it is thought so."""

    rank: int
    reason: str
    running: bool
    """Whether its process still beats."""
    slow: bool = False
    """Whether it is in a phase that may take long."""


def moved(first: Sequence[Pulse | None], second: Sequence[Pulse | None]) -> bool:
    """Whether some main thread went on between two looks."""
    return any(a is None or b.progress != a.progress for a, b in zip(first, second, strict=True) if b is not None)


def find_silent(first: Sequence[Pulse | None], second: Sequence[Pulse | None]) -> list[Finding]:
    """The ranks whose pulse did not beat between two looks: stopped, or gone.

    Args:
        first: Every rank's pulse.
        second: The same, long enough after for every living rank to have beaten.
    """
    found = []
    for rank, (before, now) in enumerate(zip(first, second, strict=True)):
        if now is None:
            found.append(Finding(rank, "has left no sign of life", running=False))
        elif not now.ended and before is not None and now.beat == before.beat:
            where = f"{_process_state(now)}; last seen {_where(now)}"
            found.append(Finding(rank, f"({_who(now)}) {where}", running=False))
        elif now.ended and not now.lost_others:
            found.append(Finding(rank, f"({_who(now)}) has ended: {now.ended}", running=False))
    return found


def find_behind(pulses: Sequence[Pulse | None]) -> list[Finding]:
    """Of ranks that all beat but do not go on, those that the others wait for.

    They are those furthest behind; where all are equally far, those that are not in a collective while others are.
    A rank that gave up waiting still tells how far it was. Empty when nothing tells them apart.
    """
    compared = [(rank, pulse) for rank, pulse in enumerate(pulses) if pulse is not None]
    known = [(rank, pulse) for rank, pulse in compared if not pulse.ended or pulse.lost_others]
    least = min((pulse.progress for _, pulse in known), default=0)
    behind = [(rank, pulse) for rank, pulse in known if pulse.progress == least]
    if len(behind) == len(known):
        behind = [(rank, pulse) for rank, pulse in known if not pulse.waiting]
    if len(behind) == len(known):
        return []
    return [
        Finding(rank, f"({_who(pulse)}) runs but does not go on: {_where(pulse)}", running=True, slow=pulse.slow)
        for rank, pulse in behind
        if not pulse.ended
    ]


def describe(pulses: Sequence[Pulse | None]) -> str:
    """Where every rank is, a line each."""
    return "\n".join(
        f"  rank {rank}: {'no sign of life' if pulse is None else f'{_who(pulse)}, {pulse.ended or _where(pulse)}'}"
        for rank, pulse in enumerate(pulses)
    )


def _who(pulse: Pulse) -> str:
    return f"{pulse.host}, process {pulse.pid}"


def _where(pulse: Pulse) -> str:
    return f"step {pulse.step}, {pulse.phase}" + (f", at {pulse.place}" if pulse.place else "")


def _process_state(pulse: Pulse) -> str:
    """What the kernel says of a process on this machine; of another machine's nothing is known."""
    if pulse.host != os.uname().nodename:
        return "does not answer (stopped, dead, or its machine is gone)"
    try:
        state = Path(f"/proc/{pulse.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "is dead"
    if state in "Tt":
        return "is stopped (SIGSTOP or a debugger)"
    if state in "ZX":
        return "is dead"
    return f"does not answer, though its process is there (state {state}): stuck in native code or in the kernel"

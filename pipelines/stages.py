"""Stages that are processes of their own, and end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenflow.config import read_json
from tokenflow.evaluation.measure import write_json

_running: set[subprocess.Popen] = set()


class StageStopped(Exception):
    """A stage ended after a stop signal, with a checkpoint."""


def run_stage(words: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
    """Exit code of `python WORDS`; interrupted by Ctrl-C, which reaches the stage too, waits until it has saved."""
    process = subprocess.Popen([sys.executable, *words], env=environment)
    _running.add(process)
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("saving ...", file=sys.stderr, flush=True)
        process.wait()
        raise
    finally:
        _running.discard(process)


@contextmanager
def ending_together() -> Iterator[None]:
    """Makes of SIGTERM what Ctrl-C is: the stages that run get it as well, and KeyboardInterrupt is raised here."""

    def stop(number: int, frame: object) -> None:
        for process in tuple(_running):
            process.send_signal(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class FinishedStages:
    """What each stage of a chain finished with; from the first stage on that is to run anew, all are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = read_json(path) if path.exists() else {}
        self._unbroken = True

    def keep_to(self, world: dict[str, Any]) -> None:
        """Stages that were trained on other pictures or captions must not be passed over, nor gone on with.

        Raises SystemExit where some were.
        """
        before = self._found.get("world")
        if self._found and before != world:
            raise SystemExit(
                f"error: the stages in {self._path.parent} were trained on {before or 'an older world'}; the built-in "
                f"pictures and captions are {world} now. Remove {self._path.parent}, or choose another --output."
            )
        self._found["world"] = world

    def include(self, made: Path, asked: dict[str, Any]) -> bool:
        """Whether the stage that makes a folder has finished so, and all before it had."""
        name = str(made.relative_to(self._path.parent))
        self._unbroken = self._unbroken and made.is_dir() and self._found.get(name) == asked
        return self._unbroken

    def add(self, made: Path, asked: dict[str, Any]) -> None:
        """Note that a stage has finished."""
        self._found[str(made.relative_to(self._path.parent))] = asked
        write_json(self._path, self._found)

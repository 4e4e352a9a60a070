"""Stages that are processes of their own, and end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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

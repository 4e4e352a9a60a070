"""Hang detection: when a step stands still, the ranks that are waiting name the one they wait for, and end.

A collective waits without a word for a rank that was stopped, died or sleeps in its data loader. So a thread of
every rank writes a sign of life into the run's folder, and looks at the others' when its own main thread has not
gone on for long: whose file no longer changes is stopped or gone; whose file changes but who is behind the others
hangs. Then the process logs who that is and its own stacks, and ends with `EXIT_HUNG`, for the batch system to
restart.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tokenflow.train import distributed
from tokenflow.train.config import SLOW_PHASE_FACTOR, TrainConfig
from tokenflow.train.hooks import Hook
from tokenflow.train.pulse import (
    Finding,
    Pulse,
    describe,
    find_behind,
    find_silent,
    main_thread_place,
    moved,
    pulse_file,
    read_pulses,
    write_pulse,
)
from tokenflow.train.state import TrainState

logger = logging.getLogger(__name__)

EXIT_HUNG = 76
"""What a rank's process returns when it, or a rank it waited for, stood still for `train.hang_minutes`."""

SLOW_PHASES = frozenset({"evaluating", "saving"})


class HangWatch(Hook):
    """Watches a run of several ranks; with one rank, or `train.hang_minutes: 0`, it does nothing.

    A rank that does not beat is given `hang_minutes`. One that beats but does not go on is given four times as much
    while it may be slow for a good reason: in the first step (compilation), an evaluation or a checkpoint.
    """

    def __init__(self, folder: Path, *, end: Callable[[int], object] = os._exit) -> None:
        """Every rank makes one.

        Args:
            folder: Where the signs of life go, on a file system that all ranks share.
            end: Ends the process with an exit code; called from the watching thread.
        """
        self._folder = folder
        self._end = end
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._writing = threading.Lock()
        self._beats = 0
        self._position = (0, 0, "starting", True)
        self._since = time.monotonic()
        self._first_look: tuple[int, float, list[Pulse | None]] | None = None
        self._ended = ""
        self._lost_others = False

    def started(self, state: TrainState, config: TrainConfig) -> None:
        """Begin to watch; returns when every rank has given a sign of life."""
        if distributed.world_size() == 1 or config.hang_minutes == 0:
            return
        self._limit = config.hang_minutes * 60
        self._interval = min(10.0, self._limit / 16)
        self._first_step = state.step
        self._folder.mkdir(parents=True, exist_ok=True)
        self._enter(state.step, "starting", slow=True)
        self._beat()
        if distributed.is_main_process():
            expected = {pulse_file(self._folder, rank) for rank in range(distributed.world_size())}
            for stale in set(self._folder.glob("rank_*.json")) - expected:
                stale.unlink()
        distributed.barrier()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)
        self._thread.start()

    def entered(self, state: TrainState, phase: str) -> None:
        """Note that the main thread goes on."""
        if self._thread is not None:
            self._enter(state.step, phase, slow=phase in SLOW_PHASES or state.step == self._first_step)

    def finished(self, state: TrainState, outcome: str) -> None:
        """Stop watching."""
        self._close(outcome)

    def failed(self, state: TrainState) -> None:
        """Stop watching; where the error says that others are gone, say which."""
        if self._thread is None:
            return
        error = sys.exc_info()[1]
        self._lost_others = _is_lost_connection(error)
        self._ended = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self._beat()
        if self._lost_others:
            first = self._look()
            time.sleep(4 * self._interval)
            self._blame(find_silent(first, self._look()), "the connection to the others is lost")
        self._close(self._ended)

    def _enter(self, step: int, phase: str, *, slow: bool) -> None:
        # One assignment, so that the other thread never sees half of it.
        self._position = (self._position[0] + 1, step, phase, slow)
        self._since = time.monotonic()

    def _close(self, ended: str) -> None:
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        self._ended = ended
        self._beat()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self._beat()
            if not self._ended:
                self._judge()

    def _beat(self) -> None:
        """Write this rank's sign of life."""
        with self._writing:
            self._write_pulse()

    def _write_pulse(self) -> None:
        self._beats += 1
        progress, step, phase, slow = self._position
        long = time.monotonic() - self._since > self._limit / 4
        place, waiting = main_thread_place() if long else ("", False)
        pulse = Pulse(
            host=os.uname().nodename,
            pid=os.getpid(),
            beat=self._beats,
            progress=progress,
            step=step,
            phase=phase,
            slow=slow,
            place=place,
            waiting=waiting,
            ended=self._ended,
            lost_others=self._lost_others,
        )
        try:
            write_pulse(self._folder, distributed.rank(), pulse)
        except OSError as error:
            # A full disk must not end a run that could go on; the next beat tries again.
            logger.warning("cannot write a sign of life to %s: %s", self._folder, error)

    def _look(self) -> list[Pulse | None]:
        return read_pulses(self._folder, distributed.world_size())

    def _judge(self) -> None:
        """Look at the others once half the time is over, and again when all of it is."""
        now, progress = time.monotonic(), self._position[0]
        stands_for = now - self._since
        if stands_for < self._limit / 2:
            return
        if self._first_look is None or self._first_look[0] != progress:
            self._first_look = (progress, now, self._look())
            return
        _, looked, first = self._first_look
        if stands_for < self._limit or now - looked < self._limit / 2:
            return
        second = self._look()
        silent = find_silent(first, second)
        if not silent and moved(first, second):
            self._first_look = (progress, now, second)
            return
        behind = find_behind(second)
        slow = self._position[3] or any(finding.slow for finding in behind)
        if silent or not slow or stands_for > self._limit * SLOW_PHASE_FACTOR:
            self._give_up(silent or behind, second, stands_for)

    def _give_up(self, findings: list[Finding], pulses: Sequence[Pulse | None], seconds: float) -> None:
        """Name the culprits, show this process's stacks, end it."""
        own = distributed.rank()
        _, step, phase, _ = self._position
        self._blame(findings, f"step {step} has stood still in {phase} for {seconds / 60:.2g} minutes")
        logger.error("where every rank is:\n%s", describe(pulses))
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        for handler in logging.getLogger().handlers:
            handler.flush()
        if any(finding.rank == own for finding in findings):
            # A launcher kills the others when one rank ends: let them say whom they were waiting for.
            for _ in range(4):
                time.sleep(self._interval)
                self._beat()
        else:
            self._ended, self._lost_others = f"gave up in step {step}", True
            self._beat()
        self._end(EXIT_HUNG)

    def _blame(self, findings: Sequence[Finding], what: str) -> None:
        own = distributed.rank()
        if not findings:
            logger.error("%s, and no rank stands out", what)
        for finding in findings:
            this = " (this one)" if finding.rank == own else ""
            logger.error("%s because of rank %d%s: it %s", what, finding.rank, this, finding.reason)


def _is_lost_connection(error: BaseException | None) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))

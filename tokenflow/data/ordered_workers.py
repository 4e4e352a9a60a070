"""Work shared by processes, its results in the order of the work, where a worker that dies costs one item.

Items go round the workers in turn, so that their number changes nothing but the time. The item at which a worker died
(killed for memory, a decoder's fault) is found by trying again, alone. Workers end by themselves when the process that
started them does, even by SIGKILL: their pipes close.
"""

import multiprocessing
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

_AHEAD = 3


@dataclass(frozen=True)
class WorkerDied:
    """In place of the result of the item at which a worker process ended."""

    exit_code: int | None


def ordered_map(function: Callable[[Any], Any], items: Iterable[Any], *, workers: int) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) of every item, in order; at most three items a worker are taken ahead.

    Args:
        function: Must not raise; where it does, its worker dies.
        items: Small; results may be large.
        workers: Processes; 0 does the work here, where nothing is caught.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; expected 0 (this process) or more")
    if not workers:
        for item in items:
            yield item, function(item)
        return
    team = [_Worker(function) for _ in range(workers)]
    try:
        waiting: deque[tuple[int, Any]] = deque()
        for number, item in enumerate(items):
            if len(waiting) == workers * _AHEAD:
                yield _next(waiting, team, function)
            team[number % workers].send(item)
            waiting.append((number % workers, item))
        while waiting:
            yield _next(waiting, team, function)
    finally:
        for worker in team:
            worker.stop()


def _next(waiting: deque[tuple[int, Any]], team: list["_Worker"], function: Callable[[Any], Any]) -> tuple[Any, Any]:
    number, item = waiting.popleft()
    try:
        return item, team[number].receive()
    except (EOFError, OSError):
        team[number].stop()
    # its last results may have died with it, so this item need not be the one: it alone is tried again
    team[number] = _Worker(function)
    team[number].send(item)
    try:
        result = team[number].receive()
    except (EOFError, OSError):
        result = WorkerDied(team[number].stop())
        team[number] = _Worker(function)
    for other, later in waiting:
        if other == number:
            team[number].send(later)
    return item, result


class _Worker:
    def __init__(self, function: Callable[[Any], Any]):
        # as torch's DataLoader: nothing is pickled at the start, and the modules are there already
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs, self._pipe), daemon=True)
        self._process.start()
        # closed here, so that the end of the worker is the end of the pipe
        theirs.close()

    def send(self, item: Any) -> None:
        # of a worker that died: found out when its result is asked for
        with suppress(OSError):
            self._pipe.send(item)

    def receive(self) -> Any:
        return self._pipe.recv()

    def stop(self) -> int | None:
        self._pipe.close()
        self._process.join(timeout=0.2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def _serve(function: Callable[[Any], Any], pipe: Connection, parents: Connection) -> None:
    parents.close()
    # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results: queue.Queue[Any] = queue.Queue(_AHEAD)
    # sends while the next item is worked on
    threading.Thread(target=_send, args=(results, pipe), daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            results.put(function(pipe.recv()))


def _send(results: "queue.Queue[Any]", pipe: Connection) -> None:
    with suppress(OSError):
        while True:
            pipe.send(results.get())

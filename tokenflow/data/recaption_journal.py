"""Answers of a captioning model as they come in, one JSON line each, appended to a file: what a crash cannot take back.

A line goes to the operating system at once, so that a killed process loses nothing that it had noted, and to the disk
every few lines, so that a machine that loses power loses those few at most. A last line that was cut off is cut away.
"""

import fcntl
import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)
_LINES_A_SYNC = 32


class Journal:
    """`with Journal(path, shard=name) as journal: journal.add(position, key, {...})`; by one process at a time.

    Args:
        path: The file; its folder exists.
        shard: Name of the shard whose samples are noted; lines of others are not read.
        lines_a_sync: Lines between two syncs to the disk.
    """

    def __init__(self, path: Path, *, shard: str, lines_a_sync: int = _LINES_A_SYNC):
        self.path = path
        self.shard = shard
        self._lines_a_sync = lines_a_sync
        self._unsynced = 0
        self.noted: dict[tuple[int, str], dict[str, Any]] = {}
        """By (position, key)."""

    def __enter__(self) -> "Journal":
        """Raises ValueError when another process writes to the file."""
        with ExitStack() as stack:
            # a file of its own: the lock of a file ends when this process closes any handle of it
            self._lock(stack.enter_context(open(self.path.with_suffix(".lock"), "wb")))
            self.noted, whole = read_journal(self.path, shard=self.shard)
            # appending: what is there is never written over
            self._file = stack.enter_context(open(self.path, "ab"))
            self._file.truncate(whole)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sync()
        finally:
            self._stack.close()

    def get(self, position: int, key: str) -> dict[str, Any] | None:
        """What was noted of a sample; None where nothing was."""
        return self.noted.get((position, key))

    def __len__(self) -> int:
        return len(self.noted)

    def add(self, position: int, key: str, content: dict[str, Any]) -> None:
        """Note a sample; a later line of the same sample replaces an earlier one."""
        line = json.dumps({"shard": self.shard, "position": position, "key": key, **content}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.noted[position, key] = content
        self._unsynced += 1
        if self._unsynced >= self._lines_a_sync:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is being written by another process; expected one process a part. Wait for it, and give "
                "every process its own --part of the same --parts"
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): let one process at a time write there", self.path, error)


def read_journal(path: Path, *, shard: str) -> tuple[dict[tuple[int, str], dict[str, Any]], int]:
    """({(position, key): what was noted}, bytes up to the end of the last whole line); empty where there is no file."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    noted: dict[tuple[int, str], dict[str, Any]] = {}
    unreadable = 0
    for line in content[:whole].splitlines():
        try:
            entry = json.loads(line)
            if entry.pop("shard") == shard:
                noted[int(entry.pop("position")), str(entry.pop("key"))] = entry
        except (ValueError, KeyError, TypeError, AttributeError):
            # zeros after a loss of power, for instance: those samples are asked for again
            unreadable += 1
    if unreadable:
        logger.warning("%d lines of %s cannot be read; their samples are captioned again", unreadable, path)
    return noted, whole

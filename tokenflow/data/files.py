"""Files that appear whole or not at all, also where the process that writes them dies: written under a hidden name
beside their place, synced, renamed."""

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, *, writer: str = "") -> Iterator[Path]:
    """Gives a hidden path to write to; when the block ends well, that file takes `path`'s place.

    Args:
        path: The file; its folder exists.
        writer: Tells processes apart that may write this file at the same time. Without one a killed process leaves
            one hidden file at most, which the next writer of `path` replaces.
    """
    partial = path.with_name(f".{path.name}{writer}.partial")
    try:
        yield partial
        # A rename must not reach the disk before the bytes it makes visible.
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8; several processes may do so at once, and the last one wins."""
    with replacing(path, writer=f".{secrets.token_hex(4)}") as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people read too."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def write_beside(path: Path, content: str) -> None:
    """Write a file that speeds up the next start; where that is impossible, only say so."""
    try:
        write_whole(path, content)
    except OSError as error:
        logger.info("%s stays in memory: %s", path, error)


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Holds `what`, named in messages, against other processes by a lock on the file `path`, whose folder exists.

    Raises:
        ValueError: Another process has it.
    """
    with open(path, "wb") as file:
        try:
            # not flock: this one is not inherited by the workers, which may outlive a killed parent for a moment
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{what!r} is being written by another process; wait for it") from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): let one process at a time write there", what, error)
        yield

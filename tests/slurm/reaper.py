"""Finds a test cluster's processes by their environment; as a program, kills them when its standard input ends.

A pipe ends with the process at its other end, however that dies: `kill -9` of the tests leaves no daemon behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def marked(conf: Path, *, node: str | None = None, job: str | None = None) -> list[int]:
    """Processes that were started for the cluster with this slurm.conf; only those of a node, or of a job's ranks."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _belongs(path, conf, node, job)]


def _belongs(process: Path, conf: Path, node: str | None, job: str | None) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        if f"SLURM_CONF={conf}".encode() not in environment:
            return False
        if job is not None and f"SLURM_JOB_ID={job}".encode() not in environment:
            return False
        if node is None:
            return True
        words = (process / "cmdline").read_bytes().split(b"\0")
        # A task knows its node by a variable, slurmd by its arguments; the environment of slurmstepd is slurmd's.
        return f"SLURMD_NODENAME={node}".encode() in environment or _is_daemon_of(process, words, node)
    except OSError:
        return False


def _is_daemon_of(process: Path, words: list[bytes], node: str) -> bool:
    name = Path(os.fsdecode(words[0])).name if words and words[0] else ""
    if name == "slurmd":
        return node.encode() in words
    if not name.startswith("slurmstepd"):
        return False
    logs = {os.readlink(link) for link in (process / "fd").iterdir() if link.is_symlink()}
    return any(Path(log).name == f"slurmd.{node}.log" for log in logs)


def main() -> None:
    """Wait for the end of standard input, then kill until nothing is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    for _ in range(100):
        found = [process for process in marked(Path(sys.argv[1])) if process != os.getpid()]
        if not found:
            return
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


if __name__ == "__main__":
    main()

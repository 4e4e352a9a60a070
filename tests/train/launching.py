"""Starts `tiny_run`, or a pipeline, as real processes, the way a launcher would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.train.tiny_run import KEYS
from tokenflow.train import EXIT_STOPPED, read_rows

ROOT = Path(__file__).resolve().parents[2]


def clean_environment() -> dict[str, str]:
    """This process's environment without what makes a child believe it is a rank."""
    kept = {key: value for key, value in os.environ.items() if key not in KEYS and not key.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    """A port that nobody has; each of pytest-xdist's workers finds others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # Linux gives ports of one parity
        if port // 2 % 16 == worker % 16:
            return port


def start(*arguments: object, world_size: int = 1, module: str = "tests.train.tiny_run") -> list[subprocess.Popen[str]]:
    """The processes of one run, started."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        environment = clean_environment()
        if world_size > 1:
            values = (str(rank), str(world_size), str(rank), "127.0.0.1", port)
            environment.update(zip(KEYS, values, strict=True))
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return processes


def run(
    *arguments: object,
    world_size: int = 1,
    expected: int = 0,
    module: str = "tests.train.tiny_run",
    timeout: float = 240,
) -> str:
    """Run to the end; the output of rank 0."""
    processes = start(*arguments, world_size=world_size, module=module)
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == expected, output[-4000:]
    return outputs[0]


def refused(*arguments: object, module: str) -> str:
    """The one line with which a pipeline refuses its options, with exit code 2."""
    output = run(*arguments, expected=2, module=module)
    assert "Traceback" not in output, output[-4000:]
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    return line


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running process will do."""
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.001)


def stop(*arguments: object, folder: Path, module: str) -> str:
    """Run a pipeline until its first row is in `folder`, then ask it to stop; its output. It has no model yet."""
    (process,) = start(*arguments, module=module)
    wait_until(lambda: bool(read_rows(folder / "metrics.jsonl")), process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, output[-4000:]
    assert not (folder / "model").exists()
    return output


def curve(folder: Path, name: str = "loss", kind: str = "train") -> list[float]:
    """One metric over the steps; every step appears once."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), steps
    return [row[name] for row in rows]

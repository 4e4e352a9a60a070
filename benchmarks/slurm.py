"""Seconds from `sbatch` to the first step, and what going back into the queue costs, on a small cluster made here.

    python -m benchmarks.slurm [--json] [--nodes 2]

`slurm/stage1_tokenizer.sh` trains the nano recipe from random weights on so many nodes, a process each. Three things
are timed by its progress: its start; USR1 to the batch script, as before a time limit or on preemption; the loss of a
node, which Slurm notices by itself (SlurmdTimeout is 10 s on this cluster, 300 s by default). Needs what
tests/slurm/install.sh installs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.slurm.cluster import Cluster, Job, what_is_missing
from tests.slurm.runs import last_step
from tokenflow.data import write_shapes

SAVE_EVERY = 20
WAIT = 900


class Watched:
    """A job of stage 1 and how far it is."""

    def __init__(self, cluster: Cluster, folder: Path, *, nodes: int) -> None:
        self.cluster, self.output = cluster, folder / "run"
        write_shapes(folder / "data", num_samples=256, image_size=32, seed=0)
        words = (
            *("--model.pretrained", "random", "--teacher.pretrained", "random", "--train.steps", 100_000),
            *("--train.global_batch_size", 16, "--train.micro_batch_size", 8),
            *("--train.log_every", 1, "--train.evaluate_every", 0, "--train.save_every", SAVE_EVERY),
            *("--tracking.mlflow", "false"),
        )
        self._submit: Callable[[], Job] = lambda: cluster.submit(
            "stage1_tokenizer.sh", *words, nodes=nodes, RECIPE="nano", OUTPUT=self.output, DATA=folder / "data"
        )

    def start(self) -> dict[str, float]:
        """Submit it and wait for the first step."""
        submitted = time.monotonic()
        self.job = self._submit()
        return self._timed(submitted, restarts=0, beyond=0)

    def interrupted(self, interrupt: Callable[[Job], object]) -> dict[str, float]:
        """Let it go on for a while, interrupt it, and wait until it is further than it was."""
        goal = last_step(self.output) + 2 * SAVE_EVERY + SAVE_EVERY // 2
        self.job.until(lambda: last_step(self.output) >= goal, seconds=WAIT)
        restarts = self.job.restarts
        interrupted = time.monotonic()
        interrupt(self.job)
        self.job.until(lambda: self.job.restarts > restarts, seconds=WAIT)
        reached = last_step(self.output)
        saved = int((self.output / "checkpoints" / "latest").read_text().removeprefix("step_"))
        return {**self._timed(interrupted, restarts=restarts + 1, beyond=reached), "repeated_steps": reached - saved}

    def _timed(self, since: float, *, restarts: int, beyond: int) -> dict[str, float]:
        job = self.job
        job.until(lambda: job.state == "RUNNING" and job.restarts == restarts, seconds=WAIT)
        running = time.monotonic() - since
        job.until(lambda: last_step(self.output) > beyond, seconds=WAIT)
        return {"seconds_to_running": running, "seconds_to_next_step": time.monotonic() - since}


def measure(*, nodes: int) -> dict[str, Any]:
    """All three, on a cluster of its own."""
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "cluster", nodes=nodes + 1) as cluster:
        watched = Watched(cluster, Path(folder), nodes=nodes)
        return {
            "start": watched.start(),
            "signal": watched.interrupted(
                lambda job: cluster.command("scancel", "--signal=USR1", "--batch", job.number)
            ),
            "node lost": watched.interrupted(lambda job: cluster.crash_node(job.hosts[-1])),
        }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nodes", type=int, default=2)
    arguments = parser.parse_args()
    if obstacle := what_is_missing():
        print(obstacle, file=sys.stderr)
        return 2
    found = measure(nodes=arguments.nodes)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    print("| what | seconds until the job runs | until the first new step | steps computed again |")
    print("|---|---:|---:|---:|")
    for name, row in found.items():
        repeated = row.get("repeated_steps", "")
        print(f"| {name} | {row['seconds_to_running']:.1f} | {row['seconds_to_next_step']:.1f} | {repeated} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

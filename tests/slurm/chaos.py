"""Random kills of a job's ranks and nodes, at moments that its own progress sets."""

from __future__ import annotations

import logging
import os
import random
import signal
from pathlib import Path

from tests.slurm.cluster import Cluster, Job
from tests.slurm.runs import GENERATOR, last_step

logger = logging.getLogger(__name__)


def kill_randomly(
    cluster: Cluster, job: Job, output: Path, *, kills: int, steps: int, chance: random.Random
) -> list[str]:
    """Kill a rank or crash a node, again and again, each time after the run got a little further.

    Returns:
        What was killed, in order.
    """
    done = []
    for number in range(kills):
        # Each kill leaves room for those that follow.
        room = max(1, (steps - 2 - last_step(output)) // (kills - number))
        goal = last_step(output) + chance.randint(1, room)
        restarts = job.restarts
        job.until(lambda goal=goal: job.state == "RUNNING" and last_step(output) >= goal, seconds=150)
        if chance.random() < 0.5:
            rank = chance.choice(sorted(job.processes(GENERATOR)))
            os.kill(rank, signal.SIGKILL)
            done.append(f"a rank at step {last_step(output)}")
        else:
            node = chance.choice(job.hosts)
            cluster.crash_node(node)
            # As an administrator or a health check would; by itself Slurm waits for SlurmdTimeout.
            cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
            done.append(f"node {node} at step {last_step(output)}")
        logger.info("kill %d: %s", number + 1, done[-1])
        job.until(lambda restarts=restarts: job.restarts > restarts, seconds=120)
        for node in cluster.nodes:
            if "DOWN" in cluster.fields("node", node)["State"]:
                cluster.revive_node(node)
    return done

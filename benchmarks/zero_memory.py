"""Resident memory that ZeRO's states take on a CPU, against the estimate that `--dry_run` prints.

    python -m benchmarks.zero_memory [--json] [--world_sizes 2 4] [--stages 1 2 3] [--layers 13]

A stack of linear layers of 4096 x 4096 (218 million parameters by default) takes two steps under DeepSpeed on so many
processes of this machine. Measured is, on the rank where it is largest, how far the process's resident memory (what is
shared with other processes included) has grown since its imports at the peak of the second step's backward pass
(VmHWM, set back before it): weights, gradients, both moments, masters and buckets are there then. Activations are a
few kilobytes. What stays after the pass is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenflow import train
from tokenflow.config import read_json
from tokenflow.train import distributed

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 4096
LAYERS = 13


class Wide(nn.Module):
    """Linear layers, and nothing that needs memory besides."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One after the other."""
        return self.layers(x)


def memory(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at the peak since the last reset (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def rank_main(arguments: argparse.Namespace) -> None:
    """One rank: two steps, then the growth on the rank where it is largest."""
    import deepspeed  # noqa: F401  its import belongs to those before the measurement

    torch.set_num_threads(1)
    distributed.initialize()
    distributed.barrier()
    deepspeed_json = configuration(arguments.stages[0])
    before = memory("VmRSS")
    world_size = distributed.world_size()
    config = train.TrainConfig(steps=9, global_batch_size=world_size, micro_batch_size=1)
    engine = train.Engine(
        lambda: Wide(arguments.layers),
        name="wide",
        train=config,
        optimizer=train.OptimizerConfig(),
        deepspeed=deepspeed_json,
        construction="sharded" if arguments.stages[0] == 3 else "whole",
    )
    for step in range(2):
        engine.start_step()
        engine.start_micro_batch(last=True)
        Path("/proc/self/clear_refs").write_text("5")
        engine.backward(engine(torch.ones(1, WIDTH)).square().mean())
        if step == 0:
            engine.step(step)
    grown = torch.zeros(2, world_size, dtype=torch.float64)
    grown[:, distributed.rank()] = torch.tensor([memory("VmHWM") - before, memory("VmRSS") - before])
    peak, rest = distributed.sum_over_ranks(grown).amax(dim=1).tolist()
    if distributed.is_main_process():
        print(f"grown {int(peak)} {int(rest)}", flush=True)
    os._exit(0)


def configuration(stage: int) -> dict[str, Any]:
    """The shipped DeepSpeed JSON of a stage."""
    return read_json(ROOT / "deepspeed_configs" / f"zero{stage}.json")


def measure(*, stage: int, world_size: int, layers: int = LAYERS) -> dict[str, float]:
    """Estimate and measurement of one rank, in bytes, and their ratio."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benchmarks.zero_memory",
        "--rank",
        "--stages",
        str(stage),
        "--layers",
        str(layers),
    ]
    ranks = []
    for rank in range(world_size):
        place = {
            "RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"a rank failed:\n{outputs[0][-3000:]}")
    line = next(line for line in outputs[0].splitlines() if line.startswith("grown "))
    measured, rest = map(int, line.split()[1:])
    parameters = layers * WIDTH * (WIDTH + 1)
    estimated = train.estimate_memory(trained=parameters, deepspeed=configuration(stage), world_size=world_size).total
    ratio = measured / estimated
    return {
        "parameters": parameters, "estimated": estimated, "measured": measured, "after": rest, "ratio": ratio
    }  # fmt: skip


def main() -> None:
    """Measure every stage on every number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--world_sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--rank", action="store_true", help="for its own use: be one of the processes")
    arguments = parser.parse_args()
    if arguments.rank:
        rank_main(arguments)
    found = []
    for world_size in arguments.world_sizes:
        for stage in arguments.stages:
            row = {"stage": stage, "world_size": world_size}
            row |= measure(stage=stage, world_size=world_size, layers=arguments.layers)
            found.append(row)
            if not arguments.json:
                estimated, measured, after = (
                    f"{row[key] / 2**20:,.0f} MB" for key in ("estimated", "measured", "after")
                )
                print(f"ZeRO-{stage}, {world_size} processes: estimated {estimated}, measured {measured}", end=" ")
                print(f"({row['ratio']:.2f}), after the pass {after}", flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

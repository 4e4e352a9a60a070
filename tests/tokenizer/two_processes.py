"""Runs a function in two processes joined by gloo."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_two_processes(work: Callable, folder: Path) -> list:
    """Call `work(rank, all_reduce_sum)` in two processes and return both results; they meet in a file of `folder`."""
    mp.spawn(_one_process, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(2)]


def _one_process(rank: int, work: Callable, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    torch.save(work(rank, all_reduce_sum), Path(folder) / f"result{rank}.pt")
    dist.destroy_process_group()

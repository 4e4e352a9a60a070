"""Processes: how a run finds its ranks, and the few reductions that training needs.

One code path for every way to start: plain `python` (one process, no environment needed), `deepspeed`, `torchrun`
(both set RANK, WORLD_SIZE, ...) and `srun` (SLURM_PROCID, ...). gloo on CPU, nccl on CUDA.

Model packages never import torch.distributed: where they need a reduction over ranks (codebook usage), they take
a function such as `sum_over_ranks`.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import re
import subprocess
import sys
import warnings
import zlib
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

import numpy as np
import torch
import torch.distributed
from torch import Tensor

logger = logging.getLogger(__name__)

COLLECTIVE_MINUTES = 60.0
"""How long a collective waits before it fails by itself: longer than the hang watch, which can say for whom."""

_local_rank: int | None = None

_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def initialize(*, timeout_minutes: float = COLLECTIVE_MINUTES) -> None:
    """Join the run's processes, choose this rank's device, and set up logging. Does nothing the second time.

    Args:
        timeout_minutes: How long a rank waits for the others in a collective before it fails.

    Raises:
        ValueError: The launcher set some of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, but not all.
    """
    set_up_logging(rank=int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))))
    if torch.distributed.is_initialized():
        return
    deepspeed = _import_deepspeed()
    launched = launcher_environment(os.environ)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    os.environ.update(with_device(launched, visible=visible))
    global _local_rank
    _local_rank = int(launched["LOCAL_RANK"])
    if visible:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    if int(launched["WORLD_SIZE"]) == 1:
        # A store inside the process: no port to choose, nothing to collide with.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        torch.distributed.init_process_group(backend, init_method="env://", timeout=timeout)
    atexit.register(_leave)
    # shm_comm serves inference only; building it takes half a minute and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)


def _leave() -> None:
    # Gloo's threads must end before the interpreter does, or a finished process aborts now and then.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launcher_environment(environment: MutableMapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for this process, whoever started it.

    Args:
        environment: The process's environment; not changed.

    Raises:
        ValueError: Part of the launcher's variables is missing.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        missing = [key for key in _KEYS if key not in environment]
        if environment.get("WORLD_SIZE") == "1":
            defaults = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
            return {**defaults, **{key: environment[key] for key in _KEYS if key in environment}}
        if missing:
            raise ValueError(
                f"the launcher set {[k for k in _KEYS if k in environment]} but not {missing}; expected all of "
                f"{list(_KEYS)}. Start with torchrun, deepspeed or srun, or unset them for one process."
            )
        return {key: environment[key] for key in _KEYS}
    # Set inside an srun step only; a plain `python` in a batch script is one process.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return _slurm_environment(environment)
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def with_device(launched: Mapping[str, str], *, visible: int) -> dict[str, str]:
    """The launcher's variables with the device's number as LOCAL_RANK, which is how DeepSpeed chooses its device.

    Under `srun --gpus-per-task=1` each process sees one GPU, number 0, whatever its rank on the machine.

    Args:
        launched: What `launcher_environment` returned.
        visible: GPUs that this process sees; with 0 nothing changes.
    """
    if visible == 0:
        return dict(launched)
    return {**launched, "LOCAL_RANK": str(int(launched["LOCAL_RANK"]) % visible)}


def _slurm_environment(environment: MutableMapping[str, str]) -> dict[str, str]:
    job = int(environment.get("SLURM_JOB_ID", "0"))
    step = int(environment.get("SLURM_STEP_ID", "0"))
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(nodes),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + (job * 7 + step) % 20000),
    }


def _first_host(nodes: str) -> str:
    """First host of a Slurm node list such as `gpu[003-007,9],login1`."""
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (FileNotFoundError, subprocess.CalledProcessError, IndexError):
        match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
        assert match is not None
        return match.group(1) + (match.group(2) or "")


def rank() -> int:
    """This process's rank; 0 when there is only one."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes the run has."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def local_rank() -> int:
    """This process's rank on its machine, which need not be its device's number."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _local_rank is None else _local_rank


def is_main_process() -> bool:
    """True on rank 0, the process that logs and writes what all ranks share."""
    return rank() == 0


def device() -> torch.device:
    """The device of this rank."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        torch.distributed.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, as a new tensor (any shape, any dtype that the backend sums)."""
    return _reduce(tensor, torch.distributed.ReduceOp.SUM)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Elementwise maximum of a tensor over all ranks, as a new tensor."""
    return _reduce(tensor, torch.distributed.ReduceOp.MAX)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a floating-point tensor over all ranks, as a new tensor."""
    return sum_over_ranks(tensor) / world_size()


def broadcast_text(text: str | None) -> str | None:
    """Rank 0's text on every rank."""
    if world_size() == 1:
        return text
    box = [text]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def seed_all(seed: int, *streams: int) -> None:
    """Seed python, numpy and torch (every device) from a seed and any further integers, such as the rank."""
    mixed = zlib.crc32(repr((seed, *streams)).encode())
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def set_up_logging(*, rank: int = 0, level: int = logging.INFO) -> None:
    """Log to the terminal from rank 0 (rich when it is a terminal, plain lines otherwise); other ranks warn only."""
    root = logging.getLogger()
    root.setLevel(level if rank == 0 else logging.WARNING)
    _quiet_libraries()
    if root.handlers:
        return
    if sys.stderr.isatty() and rank == 0:
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        prefix = "" if rank == 0 else f"[rank {rank}] "
        handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    root.addHandler(handler)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _quiet_libraries() -> None:
    # DeepSpeed calls it at every gathering of parameters.
    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning)
    # DeepSpeed sets its own logger's level at import, so a filter is what stays.
    logging.getLogger("DeepSpeed").addFilter(_errors_only)
    for name in (
        "compilers",
        "distutils",
        "mlflow",
        "alembic",
        "sqlalchemy",
        "git",
        "PIL",
        "urllib3",
        "matplotlib",
        "filelock",
        "httpx",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def _import_deepspeed():
    _quiet_libraries()
    import deepspeed
    import deepspeed.ops

    return deepspeed


def _reduce(tensor: Tensor, operation: torch.distributed.ReduceOp.RedOpType) -> Tensor:
    result = tensor.detach().clone()
    if world_size() == 1:
        return result
    if torch.distributed.get_backend() == "nccl" and not result.is_cuda:
        result = result.to(device())
        torch.distributed.all_reduce(result, op=operation)
        return result.to(tensor.device)
    torch.distributed.all_reduce(result, op=operation)
    return result

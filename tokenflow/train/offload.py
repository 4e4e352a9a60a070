"""Optimiser states on NVMe: a folder of this process's own, and an order of the parameters that DeepSpeed can bear."""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

NO_RESUME = (
    "DeepSpeed (0.19) loses optimiser states that are on NVMe in a checkpoint, so this run cannot be resumed. Use "
    "deepspeed_configs/zero3_offload.json for a run that must be"
)

ALIGNED_NUMBERS = 256
"""fp32 numbers in the 1024 bytes that direct input and output counts in (for one thread a request)."""

SMALLEST_READ = 2**20
"""Bytes below which DeepSpeed keeps a gradient in memory."""


def with_own_swap_folder(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """A copy of a DeepSpeed configuration that swaps into a new folder inside its `nvme_path`.

    DeepSpeed names swap files by parameter and rank alone: two runs in one folder would overwrite each other's.

    Raises:
        ValueError: There is no such folder.
    """
    changed = copy.deepcopy(deepspeed)
    offload = changed["zero_optimization"]["offload_optimizer"]
    path = Path(offload.get("nvme_path") or "")
    if not offload.get("nvme_path") or not path.is_dir():
        raise ValueError(
            f"zero_optimization.offload_optimizer.nvme_path is {offload.get('nvme_path')!r}; expected a folder on a "
            "local NVMe disk of every machine. Make it, or set another one in the DeepSpeed JSON."
        )
    logger.warning("%s", NO_RESUME)
    offload["nvme_path"] = tempfile.mkdtemp(prefix="tokenflow_", dir=path)
    return changed


def in_swappable_order(
    groups: list[dict[str, Any]], *, module: nn.Module, deepspeed: dict[str, Any], world_size: int
) -> list[dict[str, Any]]:
    """Parameter groups in an order in which every gradient that is swapped begins at an aligned place.

    DeepSpeed (0.19) lays a group's gradients end to end and reads swapped ones straight to their place; where that
    is not aligned, the read fails without a word and the gradient is rubbish. So parameters whose share is a whole
    number of aligned pieces come first, then the others, the largest first: only one of them may be swapped.

    Args:
        groups: As for a torch optimiser.
        module: Names the parameters in the error.
        deepspeed: The DeepSpeed configuration; `aio` says what is large enough to be swapped.
        world_size: Ranks of the run.

    Raises:
        ValueError: More than one parameter of a group is both large and of a size that does not fit.
    """
    aio = deepspeed.get("aio", {})
    aligned = ALIGNED_NUMBERS * aio.get("intra_op_parallelism", 1)
    smallest = max(SMALLEST_READ, aio.get("block_size", SMALLEST_READ)) // 4
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def share(parameter: nn.Parameter) -> int:
        return -(-getattr(parameter, "ds_numel", parameter.numel()) // world_size)

    ordered = []
    for group in groups:
        fitting = [parameter for parameter in group["params"] if share(parameter) % aligned == 0]
        others = sorted((p for p in group["params"] if share(p) % aligned), key=share, reverse=True)
        wrong = [f"{names[id(p)]} ({share(p):,})" for p in others[1:] if share(p) >= smallest]
        if wrong:
            raise ValueError(
                f"offload to NVMe needs parameters whose share of a rank is a multiple of {aligned} numbers, and can "
                f"place {names[id(others[0])]} ({share(others[0]):,}) last but not also {', '.join(wrong)}. Use "
                "deepspeed_configs/zero3_offload.json, or another number of ranks."
            )
        ordered.append({**group, "params": fitting + others})
    return ordered

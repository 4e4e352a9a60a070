"""What a run will need a GPU, before anything is allocated: the states that ZeRO partitions, and its buckets.

Activations are not in it: they depend on the model and on activation checkpointing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.train.config import offload_device, zero_stage


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one rank."""

    parameters: int
    """Weights that the forward pass uses."""
    gradients: int
    """Gradients of the trained weights."""
    optimizer: int
    """Adam's two moments and the fp32 master weights."""
    average: int
    """The running average of the weights."""
    buckets: int
    """Buffers in which ZeRO communicates, at the peak of the backward pass."""
    gathered: int
    """Weights that ZeRO-3 has put together for the layers it works on, at the peak; 0 between passes."""
    offloaded: int
    """Optimiser states and fp32 gradients that lie in the processor's memory instead."""

    @property
    def total(self) -> int:
        """Bytes on the rank's own device."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.buckets + self.gathered

    def lines(self) -> list[str]:
        """The estimate in GiB, a line a part."""
        parts = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            "average": self.average,
            "buckets": self.buckets,
            "gathered weights": self.gathered,
            "in all, without activations": self.total,
            "in the processor's memory": self.offloaded,
        }
        return [f"{name:<28} {value / 1024**3:8.2f} GiB" for name, value in parts.items() if value]


def estimate_memory(
    *,
    trained: int,
    frozen: int = 0,
    deepspeed: dict[str, Any] | None = None,
    world_size: int = 1,
    precision: Literal["fp32", "bf16", "bf16_autocast"] = "fp32",
    averaged: bool = False,
) -> MemoryEstimate:
    """Bytes a rank for one engine's states.

    Args:
        trained: Trained parameters of the engine's module.
        frozen: Frozen parameters inside it (towers outside any engine are whole on every rank: add them yourself).
        deepspeed: The DeepSpeed JSON.
        world_size: Ranks.
        precision: As in `TrainConfig`.
        averaged: Whether a running average is kept.
    """
    json = deepspeed or {}
    stage = zero_stage(json)
    share = trained / world_size
    width = 2 if precision == "bf16" else 4
    parameters = width * (trained + frozen) / (world_size if stage == 3 else 1)
    gradients = width * (trained if stage < 2 else share)
    moments = 8 * (share if stage > 0 else trained)
    # ZeRO keeps fp32 masters beside fp32 weights too; without ZeRO only bf16 weights have them.
    has_masters = stage > 0 or precision == "bf16"
    masters = 4 * (share if stage > 0 else trained) if has_masters else 0
    optimizer = moments + masters
    average = 4 * (share if stage == 3 else trained) if averaged else 0
    offloads = offload_device(json) is not None
    offloaded = optimizer + 4 * share if offloads else 0
    return MemoryEstimate(
        parameters=round(parameters),
        gradients=round(gradients),
        optimizer=0 if offloads else round(optimizer),
        average=round(average),
        buckets=round(_buckets(json, stage=stage, width=width, trained=trained)),
        gathered=round(_gathered(json, stage=stage, width=width, parameters=trained + frozen)),
        offloaded=round(offloaded),
    )


def _buckets(json: dict[str, Any], *, stage: int, width: int, trained: int) -> float:
    if stage == 0:
        return 0.0
    zero = json["zero_optimization"]
    size = zero.get("reduce_bucket_size", 500_000_000)
    elements = 500_000_000 if size == "auto" else float(size)
    # Two buffers take turns when communication overlaps with the backward pass; each is copied while it is reduced.
    # Measured: python -m benchmarks.zero_memory.
    copies = 4 if zero.get("overlap_comm", stage == 3) is True else 2
    return width * copies * min(elements, trained)


def _gathered(json: dict[str, Any], *, stage: int, width: int, parameters: int) -> float:
    if stage != 3:
        return 0.0
    live = json["zero_optimization"].get("stage3_max_live_parameters", 1_000_000_000)
    return width * min(1e9 if live == "auto" else float(live), parameters)

"""Gradients before the step: are they finite, and throwing them away when they are not.

DeepSpeed looks at gradients inside its own step, one engine at a time and only at some ZeRO stages. A GAN has two
engines and both must skip together, so the check is ours, the same at every stage, and comes before any step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class GradientWatch:
    """Largest gradient magnitude since the last reset, fed by a hook on every parameter.

    The hooks see this rank's gradients before they are reduced, at every ZeRO stage. NaN and infinity survive the
    maximum, so one number a rank says whether everything was finite, without waiting for the device.
    """

    def __init__(self, module: nn.Module) -> None:
        self._largest: Tensor | None = None
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._record)

    def reset(self) -> None:
        """Forget what was seen: a new step begins."""
        self._largest = None

    def non_finite(self) -> Tensor | None:
        """A float scalar, 1 if any gradient held NaN or infinity and 0 otherwise; None when there was no gradient."""
        return None if self._largest is None else (~torch.isfinite(self._largest)).float()

    def _record(self, gradient: Tensor) -> None:
        values = gradient.detach()
        if values.is_sparse:
            values = values.coalesce().values()
        largest = torch.linalg.vector_norm(values, ord=float("inf"), dtype=torch.float32)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)


class BufferSnapshot:
    """Copies of a module's saved buffers (batch-norm statistics), to undo a poisoned forward pass."""

    def __init__(self, module: nn.Module) -> None:
        saved = set(module.state_dict(keep_vars=True))
        self._buffers = [b for name, b in module.named_buffers() if name in saved]
        self._copies: list[Tensor] = []

    def take(self) -> None:
        """Remember the buffers as they are."""
        self._copies = [buffer.detach().clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Put the remembered values back."""
        with torch.no_grad():
            for buffer, copy in zip(self._buffers, self._copies, strict=True):
                buffer.copy_(copy)


def discard_gradients(engine: Any) -> None:
    """Throw away everything a DeepSpeed engine accumulated since its last step, as if backward had not been called.

    DeepSpeed has no public call for this. What is reset here is what its own overflow branch resets, for ZeRO off,
    1, 2 and 3 (`runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`, `runtime/bf16_optimizer.py`).
    """
    for parameter in engine.module.parameters():
        parameter.grad = None
        # Where ZeRO-1 keeps bf16 gradients that it accumulates in fp32.
        if getattr(parameter, "grad_accum", None) is not None:
            parameter.grad_accum = None
    optimizer = engine.optimizer
    optimizer.zero_grad(set_to_none=True)
    if not hasattr(optimizer, "averaged_gradients"):
        return
    if engine.zero_optimization_stage() == 3:
        # zero_grad has also set micro_step_id to 0: the next backward overwrites the partitions.
        if optimizer.offload_optimizer:
            optimizer.reset_cpu_buffers()
        else:
            optimizer.averaged_gradients = {}
        return
    optimizer.micro_step_id = -1
    if hasattr(optimizer, "_release_preflattened_grad_buffers"):
        optimizer._release_preflattened_grad_buffers()
    if optimizer.cpu_offload:
        optimizer.reset_cpu_buffers()
        if hasattr(optimizer, "_offload_accumulated_param_ids"):
            optimizer._offload_accumulated_param_ids = set()
        return
    for group in optimizer.averaged_gradients:
        optimizer.averaged_gradients[group] = None
    for group in getattr(optimizer, "all_grad_tensors", {}):
        optimizer.all_grad_tensors[group] = None

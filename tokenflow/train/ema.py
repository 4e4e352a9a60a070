"""A running average of the weights in fp32, kept where the weights are.

ZeRO off, 1 and 2: a full copy on every rank. ZeRO-3: a copy of this rank's partition of every parameter. The decay
warms up, min(decay, (1 + n) / (10 + n)), so that a short run is not an average with its random start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn

from tokenflow.train import distributed
from tokenflow.train.weights import is_partitioned, iterate_state, read_tensors, write_tensors


class WeightAverage:
    """Exponential moving average of a module's trainable parameters. Buffers are not averaged."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._module = module
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._averages = {name: _local(p).detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self._averages.values())
        values = [_local(parameter).detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(averages, values, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the parameters as they are now."""
        self.updates = 0
        for name, parameter in self._parameters.items():
            self._averages[name].copy_(_local(parameter))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module computes with the averages inside this context, with its own weights again after it."""
        own = {name: _local(parameter).detach().clone() for name, parameter in self._parameters.items()}
        self._assign(self._averages)
        try:
            yield
        finally:
            self._assign(own)

    def iterate_state(self) -> Iterator[tuple[str, Tensor]]:
        """The module's state with averages in fp32 in place of parameters, whole on rank 0, empty elsewhere."""
        aliases = _first_names(self._module)
        for name, value in iterate_state(self._module):
            first = aliases.get(name, name)
            yield name, (self._whole(first) if first in self._averages else value)

    def save(self, folder: Path) -> None:
        """Write the whole averages as safetensors; every rank must call it."""
        write_tensors(((name, self._whole(name)) for name in self._averages), folder)

    @torch.no_grad()
    def load(self, folder: Path, *, updates: int) -> None:
        """Read what `save` wrote, at any world size and ZeRO stage.

        Raises:
            ValueError: The files do not hold exactly this module's trainable parameters.
        """
        found = set()
        for name, tensor in read_tensors(folder):
            if name not in self._averages:
                raise ValueError(f"{folder} holds the average of {name!r}, which the model does not train")
            found.add(name)
            self._averages[name].copy_(_own_part(tensor, self._parameters[name]))
        if len(found) != len(self._averages):
            missing = sorted(set(self._averages) - found)
            raise ValueError(f"{folder} lacks the average of {missing[0]!r} (and {len(missing) - 1} more)")
        self.updates = updates

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            _local(parameter).copy_(values[name])
            if is_partitioned(parameter) and parameter.ds_status.name == "AVAILABLE":
                # A small parameter that ZeRO-3 keeps whole: free the copy, so that the next use gathers the new one.
                parameter.partition()

    def _whole(self, name: str) -> Tensor:
        average, parameter = self._averages[name], self._parameters[name]
        if is_partitioned(parameter):
            parts = [torch.empty_like(average) for _ in range(distributed.world_size())]
            torch.distributed.all_gather(parts, average)
            average = torch.cat([part.flatten() for part in parts])[: parameter.ds_numel].view(parameter.ds_shape)
        return average.detach().to("cpu", copy=True) if distributed.is_main_process() else torch.empty(0)


def _local(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter: all of it, or its partition under ZeRO-3."""
    return parameter.ds_tensor.data if is_partitioned(parameter) else parameter.data


def _own_part(tensor: Tensor, parameter: Tensor) -> Tensor:
    if not is_partitioned(parameter):
        return tensor
    size = parameter.ds_tensor.numel()
    flat = torch.zeros(size * distributed.world_size(), dtype=tensor.dtype)
    flat[: tensor.numel()] = tensor.flatten()
    return flat.narrow(0, distributed.rank() * size, size).view(parameter.ds_tensor.shape)


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every state name of a shared parameter -> the name under which `named_parameters` lists it."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    state = module.state_dict(keep_vars=True)
    return {name: first[id(value)] for name, value in state.items() if id(value) in first}

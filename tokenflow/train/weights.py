"""Weights in and out of modules whose parameters may be partitioned (ZeRO-3), one parameter at a time.

Files are safetensors, in parts, so that no rank ever needs more memory than one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenflow.train import distributed

PART_BYTES = 2 * 1024**3


def is_partitioned(tensor: Tensor) -> bool:
    """True for a parameter that ZeRO-3 holds in parts."""
    return hasattr(tensor, "ds_id")


def gathered(parameter: Tensor, *, modifier_rank: int | None = None) -> Any:
    """A context in which a parameter is whole on every rank; all ranks must enter it together."""
    if not is_partitioned(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank)


def iterate_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and whole CPU tensors of a module's state, on rank 0; the others take part and get empty tensors."""
    for name, value in module.state_dict(keep_vars=True).items():
        with gathered(value):
            whole = value.detach().to("cpu", copy=True) if distributed.is_main_process() else torch.empty(0)
        yield name, whole


def load_state(module: nn.Module, source: Mapping[str, Tensor] | str | Path, *, strict: bool = True) -> None:
    """Copy weights into a module, partitioned or not. Every rank must call it with the same source.

    Args:
        module: Whose parameters and buffers to fill.
        source: Tensors by name, or the path of a safetensors file, or of a folder of them.
        strict: Whether a weight missing from the source or unknown to the module is an error.

    Raises:
        ValueError: Missing or unknown names (strict), or a shape that does not fit.
    """
    state = module.state_dict(keep_vars=True)
    found = set()
    for name, tensor in read_tensors(source):
        if name not in state:
            if strict:
                raise ValueError(f"{_describe(source)} holds {name!r}, which the model does not have; wrong preset?")
            continue
        found.add(name)
        _copy(state[name], tensor, name=name, source=source)
    missing = [name for name in state if name not in found]
    shared = {id(state[name]) for name in found}
    missing = [name for name in missing if id(state[name]) not in shared]
    if strict and missing:
        raise ValueError(
            f"{_describe(source)} lacks {len(missing)} weights of the model, the first {missing[0]!r}; wrong preset?"
        )


def read_tensors(source: Mapping[str, Tensor] | str | Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a mapping, a safetensors file or a folder of such files, in a fixed order.

    Raises:
        ValueError: The path holds no safetensors file.
    """
    if isinstance(source, Mapping):
        yield from source.items()
        return
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ValueError(f"{path}: expected a .safetensors file or a folder with at least one")
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as handle:
            for name in sorted(handle.keys()):
                yield name, handle.get_tensor(name)


def write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path, *, part_bytes: int = PART_BYTES) -> None:
    """Write tensors as `part-00001.safetensors`, ... on rank 0; all ranks must iterate together."""
    part: dict[str, Tensor] = {}
    size, count = 0, 0
    for name, tensor in tensors:
        if not distributed.is_main_process():
            continue
        part[name] = tensor.contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= part_bytes:
            count += 1
            save_file(part, folder / f"part-{count:05d}.safetensors")
            part, size = {}, 0
    if part:
        save_file(part, folder / f"part-{count + 1:05d}.safetensors")


def _copy(target: Tensor, tensor: Tensor, *, name: str, source: Any) -> None:
    shape = tuple(getattr(target, "ds_shape", target.shape))
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{_describe(source)}: {name!r} has shape {tuple(tensor.shape)}, the model expects {shape}; wrong preset?"
        )
    with gathered(target, modifier_rank=0), torch.no_grad():
        if not is_partitioned(target) or distributed.is_main_process():
            target.copy_(tensor)


def _describe(source: Any) -> str:
    return "the given weights" if isinstance(source, Mapping) else str(source)

"""What a model computes, as a short text that changes when its weights or its configuration do."""

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import nn


def fingerprint(module: nn.Module, *, config: Any = None) -> str:
    """A hash of all parameters and buffers by name, and of the configuration; the same wherever they lie.

    Args:
        module: The model.
        config: A dataclass or plain values; the module's own `config` by default, if it has one. Entries called
            `pretrained` do not count: where first weights once came from is no part of what a model computes.
    """
    config = getattr(module, "config", None) if config is None else config
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    digest = hashlib.blake2b(json.dumps(_without_origin(plain), sort_keys=True).encode(), digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_origin(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_origin(value) for key, value in values.items() if key != "pretrained"}
    return [_without_origin(value) for value in values] if isinstance(values, list | tuple) else values

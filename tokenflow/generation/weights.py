"""Weights in safetensors files of at most 5 GB, written so that nothing is half there, and put into models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenflow.language.lazy_tensors import SAFETENSORS_INDEX

SHARD_SIZE = "5GB"


def save_weights(state: Mapping[str, Tensor], directory: Path, *, shard_size: str = SHARD_SIZE) -> list[str]:
    """Write `model.safetensors`, or shards and their index; returns the names. Files of an older save are replaced.

    Each file is written under another name first: a killed process leaves no half-written file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach() for name, value in state.items()}
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_size
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: state[name].cpu().contiguous() for name in names}
        save_file(part, directory / f".{file}.partial", metadata={"format": "pt"})
    files = list(split.filename_to_tensors)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / f".{SAFETENSORS_INDEX}.partial").write_text(json.dumps(index, indent=2) + "\n")
        files.append(SAFETENSORS_INDEX)
    for file in files:
        os.replace(directory / f".{file}.partial", directory / file)
    for old in (*directory.glob("model*.safetensors"), directory / SAFETENSORS_INDEX):
        if old.name not in files:
            old.unlink(missing_ok=True)
    return files


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON under another name first, then rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def assign(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Put `weights` in place of a model's parameters (which may be on `meta`); strict about names and shapes."""
    weights = dict(weights.items())
    for name, wanted in model.state_dict().items():
        if name in weights and weights[name].shape != wanted.shape:
            raise ValueError(
                f"{name} has shape {tuple(weights[name].shape)} in {source}; the configuration asks for "
                f"{tuple(wanted.shape)}. Check that they belong together."
            )
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(f"{source} does not fit: missing {missing[:5]}, unexpected {unexpected[:5]}.")

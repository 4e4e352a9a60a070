"""The authors' checkpoint files: read without unpickling strangers, recognised by their shapes, written back.

Their files are torch.save dictionaries with the weights under `ema`, else `model`, else `state_dict`; files of their
training also hold an argparse Namespace.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.state_dict import authors_constants, authors_table, from_authors, to_authors

WEIGHT_KEYS = ("ema", "model", "state_dict")
AUTHORS_PRESETS = ("tokenflow-b", "tokenflow-b-256", "tokenflow-b-256-enhanced", "tokenflow-l", "tokenflow-xl")


def read_authors_file(path: str | Path) -> dict[str, Tensor]:
    """The weights of one of the authors' files.

    Raises:
        ValueError: The file needs more than tensors, plain values and an argparse Namespace, or holds no weights.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as tensors, plain values and an argparse Namespace ({error}). Nothing else is ever "
            "unpickled here: save its state dict alone, where you trust it."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a dictionary with {' or '.join(WEIGHT_KEYS)}"
        )
    state = next((content[key] for key in WEIGHT_KEYS if isinstance(content.get(key), Mapping)), content)
    tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not any(key.startswith("quantize.") for key in tensors):
        raise ValueError(
            f"{path} holds no quantize.* weights; expected a tokenizer of the authors' under {', '.join(WEIGHT_KEYS)}, "
            f"got the keys {sorted(map(str, content))[:5]}"
        )
    return tensors


def likely_preset(state: Mapping[str, Tensor]) -> str:
    """The preset whose shapes a checkpoint of the authors' has.

    A CLIP-B one is the same for 224 and for interpolated 256 pixels: 256 where the decoder is the enhanced one, as
    released, else 224.

    Raises:
        ValueError: It looks like none of them.
    """
    enhanced = "decoder.conv_in.weight" in state and state["decoder.conv_in.weight"].shape[0] == 1024
    for marker, name in (
        ("encoder_vqkd.patch_embed.backbone.stem.conv1.weight", "tokenflow-l"),
        ("encoder_vqkd.vision_model.embeddings.patch_embedding.weight", "tokenflow-xl"),
        ("encoder_vqkd.conv1.weight", "tokenflow-b-256-enhanced" if enhanced else "tokenflow-b"),
    ):
        if marker in state:
            return name
    raise ValueError(
        f"these weights look like none of {', '.join(AUTHORS_PRESETS)}: no known semantic encoder among "
        f"{sorted(state)[:5]}. Name the preset."
    )


def import_tokenizer(state: Mapping[str, Tensor], *, config: TokenizerConfig | None = None) -> TokenFlowTokenizer:
    """A tokenizer with the authors' weights; strict about names and shapes.

    Args:
        state: What `read_authors_file` returns.
        config: The tokenizer; recognised by its shapes, the codebook's size included, when None.

    Raises:
        ValueError: A tensor is missing, left over or of another shape; it names the tensor, both shapes and the likely
            preset.
    """
    likely = likely_preset(state)
    if config is None:
        codebook_size = state["quantize.embedding_vqkd.weight"].shape[0]
        config = dataclasses.replace(preset(likely), codebook_size=codebook_size)
    try:
        weights = from_authors(config, state)
    except ValueError as error:
        raise ValueError(f"{error} The likely preset is {likely}.") from error
    with torch.device("meta"):
        model = TokenFlowTokenizer(config)
    for name, wanted in model.state_dict().items():
        if weights[name].shape != wanted.shape:
            theirs = next(entry.theirs for entry in authors_table(config) if entry.ours == name)
            raise ValueError(
                f"{' + '.join(theirs)}: the file has {tuple(weights[name].shape)}, the tokenizer "
                f"{tuple(wanted.shape)}. The likely preset is {likely}."
            )
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def dropped_keys(state: Mapping[str, Tensor], config: TokenizerConfig) -> list[str]:
    """Keys of the authors' that are constants or records, and have no counterpart here."""
    return sorted(set(state) & set(authors_constants(config)))


def write_authors_file(tokenizer: TokenFlowTokenizer, path: str | Path) -> None:
    """Write a tokenizer so that the authors' loader takes it strictly: `{"model": weights}`, atomically."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    weights = {name: value.detach().cpu() for name, value in tokenizer.state_dict().items()}
    theirs = {name: value.contiguous() for name, value in to_authors(tokenizer.config, weights).items()}
    torch.save({"model": theirs}, partial)
    os.replace(partial, path)

"""The authors' checkpoint files: read without unpickling strangers, recognised by their shapes, written back.

Their files are torch.save dictionaries with the weights under `ema`, else `model`, else `state_dict`; files of their
training also hold an argparse Namespace.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.state_dict import authors_constants, from_authors, to_authors

WEIGHT_KEYS = ("ema", "model", "state_dict")
USAGE_RECORD = "quantize.codebook_used"
"""Their record of used codes: dropped whatever it holds."""
AUTHORS_PRESETS = (
    "tokenflow-b",
    "tokenflow-b-enhanced",
    "tokenflow-b-256",
    "tokenflow-b-256-enhanced",
    "tokenflow-l",
    "tokenflow-l-enhanced",
    "tokenflow-xl",
    "tokenflow-xl-enhanced",
)


_TEACHERS = {"tokenflow-b": "clipb_224", "tokenflow-l": "vitamin_xlarge_256", "tokenflow-xl": "siglip_384"}


def read_authors_file(path: str | Path) -> dict[str, Tensor]:
    """The weights of one of the authors' files, mapped into memory rather than read where its format allows it.

    Raises:
        OSError: There is no such file.
        ValueError: It is cut off, needs more than tensors, plain values and an argparse Namespace, or holds no weights.
    """
    content = _load(Path(path))
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a dictionary with {' or '.join(WEIGHT_KEYS)}."
        )
    state = next((content[key] for key in WEIGHT_KEYS if isinstance(content.get(key), Mapping)), content)
    tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not any(key.startswith("quantize.") for key in tensors):
        raise ValueError(
            f"{path} holds no quantize.* weights; expected a tokenizer of the authors' under {', '.join(WEIGHT_KEYS)}, "
            f"got the keys {sorted(map(str, content))[:5]}."
        )
    return tensors


def _load(path: Path) -> object:
    """torch.load without unpickling strangers; what goes wrong is said in a line."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a .pt file of the authors' code.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a .pt file of the authors' code. Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(2)
        pointer = start + file.read(40)
    if pointer.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file. In its repository: git lfs pull")
    zipped = zipfile.is_zipfile(path)
    if size == 0 or (start == b"PK" and not zipped):
        state = "empty" if size == 0 else "cut off"
        raise ValueError(f"{path} is {state} ({size:,} bytes). Copy or download it again.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # What is wrong with a pickle of another protocol is said below, in one line.
            warnings.simplefilter("ignore", UserWarning)
            # Files of before torch 1.6 are no archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (RuntimeError, ValueError, KeyError, AttributeError, IndexError, EOFError, pickle.UnpicklingError) as error:
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        if stranger is not None:
            raise ValueError(
                f"{path} asks for {stranger[1]}; nothing but tensors, plain values and an argparse Namespace is ever "
                "unpickled. Save its state dict alone, where you trust it."
            ) from error
        raise ValueError(
            f"{path} ({size:,} bytes) is damaged or not a file of torch.save ({type(error).__name__}). Expected a .pt "
            "file of the authors' code; copy or download it again."
        ) from error


def likely_preset(state: Mapping[str, Tensor]) -> str:
    """The preset whose shapes a checkpoint of the authors' has; any of them may have the enhanced decoder.

    A CLIP-B one is the same for 224 and for interpolated 256 pixels: 256 where the decoder is the enhanced one, as
    released, else 224.

    Raises:
        ValueError: It looks like none of them.
    """
    enhanced = "decoder.conv_in.weight" in state and state["decoder.conv_in.weight"].shape[0] == 1024
    for marker, name, larger in (
        ("encoder_vqkd.patch_embed.backbone.stem.conv1.weight", "tokenflow-l", "tokenflow-l-enhanced"),
        ("encoder_vqkd.vision_model.embeddings.patch_embedding.weight", "tokenflow-xl", "tokenflow-xl-enhanced"),
        ("encoder_vqkd.conv1.weight", "tokenflow-b", "tokenflow-b-256-enhanced"),
    ):
        if marker in state:
            return larger if enhanced else name
    raise ValueError(
        f"these weights look like none of {', '.join(AUTHORS_PRESETS)}: no known semantic encoder among "
        f"{sorted(state)[:5]}. Name the preset."
    )


def authors_config(state: Mapping[str, Tensor], *, name: str | None = None) -> TokenizerConfig:
    """The preset `name`, or the one recognised by its shapes, with the codebooks' sizes that the weights have."""
    config = preset(name or likely_preset(state))
    codebooks = [state.get(f"quantize.embedding_{branch}.weight") for branch in ("vqkd", "vqgan")]
    if any(codebook is None or codebook.ndim != 2 for codebook in codebooks):
        return config
    (size, semantic), (_, pixel) = (codebook.shape for codebook in codebooks)
    return _with_codebooks(config, size=size, widths=(semantic, pixel))


def _with_codebooks(config: TokenizerConfig, *, size: int, widths: Sequence[int]) -> TokenizerConfig:
    """Other codebooks, which the authors' training has options for; the semantic decoder reads the first."""
    branches = zip(config.branches, widths, strict=True)
    vision = dataclasses.replace(config.semantic_decoder.vision, in_channels=widths[0])
    return dataclasses.replace(
        config,
        codebook_size=size,
        branches=tuple(dataclasses.replace(branch, code_width=width) for branch, width in branches),
        semantic_decoder=dataclasses.replace(config.semantic_decoder, vision=vision),
    )


def authors_options(config: TokenizerConfig) -> str:
    """What the authors' code must be told to build this tokenizer: their option names and values.

    Raises:
        ValueError: It can build no such tokenizer, whatever the options.
    """
    for name in AUTHORS_PRESETS:
        wanted = preset(name, pretrained=None)
        if len(config.branches) == len(wanted.branches):
            wanted = _with_codebooks(wanted, size=config.codebook_size, widths=config.code_widths)
        training = {field: getattr(wanted, field) for field in ("commitment_weight", "entropy_weight")}
        if dataclasses.replace(config, **training).with_pretrained(None) == wanted:
            teacher = _TEACHERS[name.replace("-256", "").removesuffix("-enhanced")]
            options = [f"teacher={teacher!r}", f"codebook_size={config.codebook_size}"]
            semantic, pixel = config.code_widths
            options += [f"semantic_code_dim={semantic}"] if semantic != 32 else []
            options += [f"codebook_embed_dim={pixel}"] if pixel != 8 else []
            options += ["infer_interpolate=True"] if "-256" in name else []
            return ", ".join(options + (["enhanced_decoder=True"] if name.endswith("-enhanced") else []))
    decoder = config.pixel_decoder and config.pixel_decoder.convolutional
    size = f"{decoder.channels} channels and {decoder.blocks} blocks" if decoder else "no size: there is none"
    raise ValueError(
        f"the authors' code builds nothing but {', '.join(AUTHORS_PRESETS)}, at any codebook size and width; this "
        f"tokenizer has {config.image_size} pixels, scales {config.scales}, the branches "
        f"{[branch.name for branch in config.branches]} and a pixel decoder of {size} (theirs: 128 and 2, enhanced 256 "
        "and 4). Export one of these; any tokenizer can be shared as a folder (save_pretrained, push_to_hub)."
    )


def import_tokenizer(state: Mapping[str, Tensor], *, config: TokenizerConfig | None = None) -> TokenFlowTokenizer:
    """A tokenizer in eval mode with the authors' weights as fp32; strict about names and shapes.

    Args:
        state: What `read_authors_file` returns.
        config: The tokenizer; `authors_config(state)` when None.

    Raises:
        ValueError: A tensor is missing, left over or of another shape; it names the tensor, both shapes and the likely
            preset.
    """
    likely = likely_preset(state)
    config = authors_config(state) if config is None else config
    with torch.device("meta"):
        model = TokenFlowTokenizer(config)
    for name, wanted in to_authors(config, model.state_dict()).items():
        if name in state and name != USAGE_RECORD and state[name].shape != wanted.shape:
            raise ValueError(
                f"{name}: the file has {tuple(state[name].shape)}, the tokenizer {tuple(wanted.shape)}. The likely "
                f"preset is {likely}."
            )
    _check_constants(state, config=config)
    try:
        weights = from_authors(config, state)
    except ValueError as error:
        raise ValueError(f"{error} The likely preset is {likely}.") from error
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True, assign=True)
    return model.eval()


def _check_constants(state: Mapping[str, Tensor], *, config: TokenizerConfig) -> None:
    """What is dropped because it is a constant here must have its value."""
    for name, wanted in authors_constants(config).items():
        found = state.get(name)
        if name != USAGE_RECORD and found is not None and not torch.allclose(found.float(), wanted, atol=1e-4):
            raise ValueError(
                f"{name} is {found.flatten().tolist()} in the file; this encoder normalises by "
                f"{wanted.flatten().tolist()}. The weights were trained on other inputs: they would not agree."
            )


def dropped_keys(state: Mapping[str, Tensor], config: TokenizerConfig) -> list[str]:
    """Keys of the authors' that are constants or records, and have no counterpart here."""
    return sorted(set(state) & set(authors_constants(config)))


def write_authors_file(tokenizer: TokenFlowTokenizer, path: str | Path) -> None:
    """Write a tokenizer so that the authors' loader takes it strictly: `{"model": fp32 weights}`, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    weights = {name: value.detach().cpu().float() for name, value in tokenizer.state_dict().items()}
    theirs = {name: _alone(value) for name, value in to_authors(tokenizer.config, weights).items()}
    try:
        torch.save({"model": theirs}, partial)
        # A rename must not reach the disk before the bytes it makes visible.
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _alone(value: Tensor) -> Tensor:
    """The tensor with a storage of its own: torch.save writes whole storages, also for a part of one."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()

"""Model folders as Hugging Face lays them out: safetensors (one file, or shards and an index), config.json, README.md.

A folder is seen whole or not at all. New files are written under hidden names; then `config.json` is taken away, the
others are moved into place, what an earlier save left is removed, and `config.json` comes back last. A reader opens
the weights between two looks at it, so it never mixes two saves.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
MAX_SHARD_SIZE = "5GB"
WEIGHT_PATTERNS = (WEIGHTS_FILE, "model-*-of-*.safetensors", INDEX_FILE)
# What else a folder of ours may hold, by the keys of its config.json; a tokenizer's names its teacher too.
_KINDS = {
    "generator": "a model that paints: `tokenflow generate`, TextToImage",
    "multimodal": "a model that sees: `tokenflow chat`, ImageToText",
    "tokenizer": "an image tokenizer: `tokenflow reconstruct`, TokenFlowTokenizer",
    "teacher": "a teacher, which `model.pretrained` and `teacher.pretrained` of tokenizer_pretrain take",
}


def save_folder(
    directory: str | Path,
    *,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    card: str,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write weights, config.json and a model card; returns the folder.

    Args:
        directory: Made if need be; a model that it holds already is replaced.
        state: Tensors on any device; they are copied to the CPU one shard at a time.
        description: What config.json holds.
        card: What README.md holds.
        max_shard_size: Bytes, or text such as "5GB"; larger models are written in several files and an index.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(description, indent=2) + "\n"
    with hidden_names(directory) as hidden:
        written = _write_weights(directory, state, max_shard_size=max_shard_size)
        write_text(hidden(CARD_FILE), card)
        write_text(hidden(CONFIG_FILE), config)
        stale = {path.name for pattern in WEIGHT_PATTERNS for path in directory.glob(pattern)} - set(written)
        put_in_place(directory, written, last=CONFIG_FILE, stale=stale)
        os.replace(hidden(CARD_FILE), directory / CARD_FILE)
    return directory


def put_in_place(directory: Path, names: Sequence[str], *, last: str, stale: Collection[str] = ()) -> None:
    """Move files from their hidden names to their own, so that whoever finds `last` finds all of one save.

    Args:
        directory: Their folder.
        names: Files that make up the model, without `last`.
        last: The file that readers look for first.
        stale: Files of an earlier save that this one does not replace.
    """
    target, hidden = directory / last, _hidden_path(directory, last)
    # One file that takes the place of one file under the same configuration: a rename is atomic as it is.
    alone = len(names) == 1 and not stale and target.is_file() and target.read_bytes() == hidden.read_bytes()
    if not alone:
        target.unlink(missing_ok=True)
    for name in names:
        os.replace(_hidden_path(directory, name), directory / name)
    for name in stale:
        (directory / name).unlink()
    if not alone:
        os.replace(hidden, target)


def _write_weights(directory: Path, state: Mapping[str, Tensor], *, max_shard_size: int | str) -> list[str]:
    """The shards and their index under hidden names; returns their names without the hiding, the index last."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(state), max_shard_size=max_shard_size)
    for name, keys in split.filename_to_tensors.items():
        write_tensors(_hidden_path(directory, name), {key: state[key] for key in keys})
    names = list(split.filename_to_tensors)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_text(_hidden_path(directory, INDEX_FILE), json.dumps(index, indent=2) + "\n")
        names.append(INDEX_FILE)
    return names


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors, on any device, to one safetensors file and wait until it is on disk."""
    path.touch()
    mode = path.stat().st_mode
    save_file({key: value.detach().contiguous().cpu() for key, value in state.items()}, path, metadata={"format": "pt"})
    # safetensors 0.8 makes files that nobody else may read.
    path.chmod(mode)
    _sync(path)


@contextlib.contextmanager
def hidden_names(directory: Path) -> Iterator[Callable[[str], Path]]:
    """Gives the hidden path of a name; what is still hidden at the end, or was left by a killed save, is removed."""
    try:
        yield lambda name: _hidden_path(directory, name)
    finally:
        for path in directory.glob(".*.partial"):
            path.unlink(missing_ok=True)


def _hidden_path(directory: Path, name: str) -> Path:
    return directory / f".{name}.partial"


def write_text(path: Path, text: str) -> None:
    """Write text and wait until it is on disk."""
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    """A rename must not reach the disk before the bytes it makes visible."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """OSError where the folder's model was replaced meanwhile."""
    before, cause = _stamp(directory), None
    try:
        yield
    except (OSError, ValueError) as error:
        cause = error
    if _stamp(directory) != before:
        raise OSError(f"{directory} was written anew while it was read. Load it again.") from cause
    if cause is not None:
        raise cause


def _stamp(directory: Path) -> tuple[int, int] | None:
    try:
        status = (directory / CONFIG_FILE).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_description(directory: Path, *, key: str, hint: str = "") -> dict[str, Any]:
    """What config.json holds; it must have `key`. `hint` ends the error about another kind of folder.

    Raises:
        FileNotFoundError: There is no config.json.
        ValueError: It is no JSON, or describes something else.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        inside = directory / "model"
        meant = f" Did you mean {inside}?" if (inside / CONFIG_FILE).is_file() else ""
        if (directory / "open_clip_config.json").is_file():
            meant = f" It is {_KINDS['teacher']}."
        raise FileNotFoundError(
            f"{directory} is not a {key} folder: {CONFIG_FILE} is missing (a save that was interrupted leaves it out). "
            f"Expected what `save_pretrained` writes; it holds {_listing(directory)}.{meant}"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Expected what `save_pretrained` writes.") from error
    if not isinstance(description, dict) or key not in description:
        found, this = type(description).__name__, ""
        if isinstance(description, dict):
            found = sorted(description)[:6]
            this = next((f" It is {kind}." for other, kind in _KINDS.items() if other in description), "")
            if "model_type" in description:
                this = f" It is a {description['model_type']} of transformers: `--language` of mllm_align takes those."
        raise ValueError(
            f"{path} has no key {key!r}, but {found}.{this} Expected what `save_pretrained` of a {key} writes.{hint}"
        )
    return description


def read_weights(directory: Path, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Tensors of the one file, or of every shard that the index names.

    On the CPU they are memory maps of the files, private to this process: they cost no memory beyond the page cache
    until they are written to, and writing does not reach the files.

    Raises:
        FileNotFoundError: Weights, or one of the shards, are missing.
        ValueError: A file is damaged, or index and shards name different tensors.
    """
    if (directory / WEIGHTS_FILE).is_file():
        return _load(directory / WEIGHTS_FILE, device=device)
    if not (directory / INDEX_FILE).is_file():
        raise FileNotFoundError(
            f"{directory} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}. Expected what `save_pretrained` writes; it "
            f"holds {_listing(directory)}."
        )
    names = _read_index(directory / INDEX_FILE)
    state: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{directory / file} is missing; {INDEX_FILE} names it. Copy or download it again.")
        shard = _load(directory / file, device=device)
        wanted = {name for name, place in names.items() if place == file}
        if wanted != set(shard):
            raise ValueError(
                f"{directory / file} does not hold what {INDEX_FILE} says: missing {sorted(wanted - set(shard))[:5]}, "
                f"unexpected {sorted(set(shard) - wanted)[:5]}. They are of different saves: copy the folder again."
            )
        state |= shard
    return state


def assign_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Put `state` in place of a model's parameters (which may be on `meta`); strict about names and shapes.

    Raises:
        ValueError: They differ: torch's own message is a page long and no ValueError.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or unexpected:
        raise ValueError(
            f"the weights in {source} do not fit its {CONFIG_FILE}: {len(missing)} tensors missing {missing[:5]}, "
            f"{len(unexpected)} unexpected {unexpected[:5]}. Take both from the same save."
        )
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)} in the weights of {source}; its {CONFIG_FILE} says "
                f"{shape}. Take both from the same save."
            )
    model.load_state_dict(state, strict=True, assign=True)


def _read_index(path: Path) -> dict[str, str]:
    try:
        names = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an index with a 'weight_map' ({error!r}). Copy the folder again.") from error
    outside = [file for file in names.values() if Path(str(file)).name != file]
    if outside:
        raise ValueError(f"{path} names {outside[0]!r}; expected files of its own folder. Do not use this folder.")
    return names


def _load(path: Path, *, device: str | torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        size = path.stat().st_size
        pointer = " It is a Git LFS pointer: run `git lfs pull`." if _is_pointer(path) else ""
        raise ValueError(
            f"{path} ({size:,} bytes) is damaged or not safetensors ({error}).{pointer} Copy or download it again."
        ) from error


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20) == b"version https://git-"


def _listing(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir())[:6]) or "nothing"

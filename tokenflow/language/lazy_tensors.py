"""Tensors by name that are read from disk one at a time, when asked for: 7B or 13B is never whole in memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


class LazyTensors(Mapping[str, Tensor]):
    """A mapping whose values are read, and read again, at each access; `items()` holds one tensor at a time."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def renamed(self, rename: Callable[[str], str | None]) -> LazyTensors:
        """The same tensors under the names `rename` gives; None leaves one out."""
        pairs = ((rename(name), reader) for name, reader in self._readers.items())
        return LazyTensors({name: reader for name, reader in pairs if name is not None})

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> LazyTensors:
        """The same tensors, with `change` applied to the one called `name` whenever it is read."""
        reader = self._readers[name]
        return LazyTensors({**self._readers, name: lambda: change(reader())})

    def joined(self, other: Mapping[str, Tensor]) -> LazyTensors:
        """These tensors and those of `other`, which win where both have a name."""
        return LazyTensors({**self._readers, **{name: (lambda n=name: other[n]) for name in other}})


def open_tensors(folder: Path) -> LazyTensors:
    """The weights of a Hugging Face folder: safetensors, sharded or not, else .bin files read with `weights_only`.

    Raises:
        ValueError: No weights, or a shard that the index names is missing.
    """
    for index, pattern in ((SAFETENSORS_INDEX, "*.safetensors"), (BIN_INDEX, "pytorch_model*.bin")):
        if (folder / index).is_file():
            names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            files = [folder / name for name in names]
        else:
            files = sorted(folder.glob(pattern))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"{folder / index} names {', '.join(missing)}, which are not there. Download them again.")
        if files:
            return LazyTensors({name: reader for file in files for name, reader in _readers(file).items()})
    raise ValueError(f"{folder} holds no weights; expected *.safetensors or pytorch_model*.bin.")


def _readers(file: Path) -> dict[str, Callable[[], Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
        return {name: (lambda n=name: _read_safetensors(file, n)) for name in names}
    tensors = _open_bin(file)
    return {name: (lambda n=name: tensors[n]) for name in tensors}


def _read_safetensors(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as content:
        return content.get_tensor(name)


def _open_bin(file: Path) -> dict[str, Tensor]:
    # Mapped, so that a tensor is read when it is copied; files of torch < 1.6 are no zips and are read whole.
    mapped = zipfile.is_zipfile(file)
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}

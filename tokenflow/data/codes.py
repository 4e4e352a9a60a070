"""Images as codes: what a folder of encoded shards says about itself, and one sample's codes as bytes.

`tokenflow encode-shards` writes such folders: `x.codes.npy` in place of the picture, captions and records as they
were, `codes.json` with the tokenizer they belong to, and at the end a manifest.json.
"""

import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokenflow.data.config import DataConfig, SourceConfig
from tokenflow.data.conversation_config import ConversationConfig
from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.files import write_json
from tokenflow.data.samples import BadSample
from tokenflow.data.settings import first_difference
from tokenflow.data.shards import expand_shards

CODES_NAME = "codes.json"
"""Beside the shards; there from the first shard on."""
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CodesDescription:
    """Whose codes a folder holds."""

    tokenizer: str = field(compare=False)
    """Folder or hub id of the tokenizer, for messages."""
    fingerprint: str
    """Of everything in the tokenizer that codes depend on."""
    image_size: int
    """Side of the pictures that were encoded, after ADM's centre crop."""
    scales: tuple[int, ...]
    """Scales of the tokenizer."""
    codebook_size: int
    """Codes of the tokenizer, K."""

    @property
    def num_codes(self) -> int:
        """Codes of one image, L."""
        return sum(scale**2 for scale in self.scales)

    def to_json(self) -> dict[str, Any]:
        """Plain types; `from_json` takes them back."""
        return asdict(self) | {"scales": list(self.scales)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "CodesDescription":
        """Inverse of `to_json`."""
        return cls(**{**record, "scales": tuple(record["scales"])})

    def __str__(self) -> str:
        return (
            f"{self.tokenizer} (fingerprint {self.fingerprint}, {self.image_size} pixels, scales "
            f"{','.join(map(str, self.scales))}, {self.codebook_size} codes)"
        )

    def pack(self, codes: np.ndarray) -> bytes:
        """One image's codes [L] as a .npy of the smallest type that holds them."""
        assert codes.shape == (self.num_codes,) and 0 <= codes.min() <= codes.max() < self.codebook_size
        stream = io.BytesIO()
        np.save(stream, codes.astype(np.min_scalar_type(self.codebook_size - 1)))
        return stream.getvalue()

    def unpack(self, content: bytes | None) -> np.ndarray:
        """Inverse of `pack`, int64 [L]; raises BadSample for anything else."""
        if not content:
            raise BadSample("it has no codes: its picture could not be encoded")
        try:
            codes = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BadSample(f"its codes cannot be read: {error}") from error
        if codes.shape != (self.num_codes,) or codes.dtype.kind not in "iu":
            raise BadSample(f"its codes are {codes.dtype} {codes.shape}; expected whole numbers ({self.num_codes},)")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise BadSample(
                f"its codes run from {codes.min()} to {codes.max()}; expected 0 to {self.codebook_size - 1}"
            )
        return codes.astype(np.int64)


def write_description(folder: Path, description: CodesDescription, *, source: dict[str, Any]) -> None:
    """Say whose codes a folder will hold, and of which pictures; an equal description is left alone.

    Raises:
        ValueError: The folder holds codes of another tokenizer, or of other pictures; it names both.
    """
    content = {"version": _VERSION, "codes": description.to_json(), "source": source}
    path = folder / CODES_NAME
    if path.is_file():
        stored = json.loads(path.read_text())
        there = CodesDescription.from_json(stored["codes"])
        if there != description:
            raise ValueError(
                f"{folder} holds codes of {there}; asked for are codes of {description}. Choose another folder, or "
                "remove this one."
            )
        if difference := first_difference({"source": source}, stored):
            raise ValueError(
                f"{folder} holds codes of other pictures: {difference}. Choose another folder, or remove this one."
            )
        return
    write_json(path, content)


def codes_of_source(source: SourceConfig) -> CodesDescription | None:
    """Whose codes a source holds; None where it holds pictures.

    Raises:
        ValueError: Its encoding was not finished.
    """
    folders = {source.path} if os.path.isdir(source.path) else {os.path.dirname(p) for p in expand_shards(source.path)}
    found = []
    for folder in sorted(folders):
        path = Path(folder) / CODES_NAME
        if not path.is_file():
            found.append(None)
            continue
        if not (Path(folder) / MANIFEST_NAME).is_file():
            raise ValueError(
                f"{folder} has a {CODES_NAME} but no {MANIFEST_NAME}: its encoding was not finished. Run `tokenflow "
                "encode-shards` again with the same options; it goes on where it stopped."
            )
        found.append(CodesDescription.from_json(json.loads(path.read_text())["codes"]))
    return _only(found, [source.path] * len(found))


def codes_of(config: DataConfig) -> CodesDescription | None:
    """Whose codes a run reads in place of pictures; None where it reads pictures.

    Raises:
        ValueError: Sources of codes and of pictures, or of two tokenizers; augmentations that need pixels; another
            image size.
    """
    description = _only([codes_of_source(source) for source in config.sources], [s.path for s in config.sources])
    if description is None:
        return None
    if config.crop != "center" or config.flip_probability:
        raise ValueError(
            f"data.crop is {config.crop} and data.flip_probability {config.flip_probability}, but "
            f"{config.sources[0].path} holds codes of centre crops, which can be neither cropped nor flipped. Set "
            "data.crop center and data.flip_probability 0, or train on the pictures."
        )
    if config.image_size != description.image_size:
        raise ValueError(
            f"data.image_size is {config.image_size}, but {config.sources[0].path} holds codes of {description}. Make "
            "them equal."
        )
    return description


def codes_of_conversations(config: ConversationConfig) -> CodesDescription | None:
    """Whose codes stand for the pictures of conversations; None where pictures do, or there are none.

    Raises:
        ValueError: Sources of codes and of pictures, or of two tokenizers.
    """
    paths = [path for path in config.image_paths if path is not None]
    return _only([codes_of_source(SourceConfig(path=path)) for path in paths], paths) if paths else None


def _only(found: list[CodesDescription | None], names: list[str]) -> CodesDescription | None:
    for name, description in zip(names, found, strict=True):
        if description != found[0]:
            pairs = ((names[0], found[0]), (name, description))
            kinds = [f"{path} holds {f'codes of {codes}' if codes else 'pictures'}" for path, codes in pairs]
            raise ValueError(f"{kinds[0]}, but {kinds[1]}. A run reads pictures, or codes of one tokenizer.")
    return found[0]

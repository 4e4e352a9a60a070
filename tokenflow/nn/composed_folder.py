"""A model that stands on two tokenizers, as one folder: its weights, a text tokenizer, an image tokenizer.

The image tokenizer lies in the folder as a copy, or is named by where it was loaded from.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tokenflow.nn.folder import (
    CONFIG_FILE,
    MAX_SHARD_SIZE,
    assign_weights,
    read_description,
    read_weights,
    save_folder,
    unchanged,
)
from tokenflow.nn.hub import find_folder, push_folder

logger = logging.getLogger(__name__)

TEXT_FOLDER = "text_tokenizer"
IMAGE_FOLDER = "image_tokenizer"
ImageTokenizer = Literal["copy", "reference"]
Module = TypeVar("Module", bound=nn.Module)


def save_composed(
    directory: str | Path,
    *,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    card: str,
    text_tokenizer: Any | None,
    image_tokenizer: ImageTokenizer,
    image_source: str | Path | None,
    save_image_tokenizer: Callable[[Path], object],
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write everything; a save that is killed leaves a folder that is refused, never new parts beside old ones.

    Args:
        directory: Where to.
        state: The model's own weights.
        description: What config.json says beside the library and the image tokenizer's name.
        card: The model card.
        text_tokenizer: Of transformers; None where the model reads no text.
        image_tokenizer: `copy` or `reference`.
        image_source: Where the image tokenizer was loaded from; None if it was not loaded by name.
        save_image_tokenizer: Writes the copy into a folder.
        max_shard_size: Weights above it are written in shards.

    Raises:
        ValueError: A reference to an image tokenizer that was not loaded by name.
    """
    directory = Path(directory)
    name = IMAGE_FOLDER
    if image_tokenizer == "reference":
        if image_source is None:
            raise ValueError("this image tokenizer was not loaded by name. Use image_tokenizer='copy'.")
        name = str(image_source)
    # Without it the folder is refused.
    (directory / CONFIG_FILE).unlink(missing_ok=True)
    if image_tokenizer == "copy":
        save_image_tokenizer(directory / IMAGE_FOLDER)
    if text_tokenizer is not None:
        text_tokenizer.save_pretrained(directory / TEXT_FOLDER)
    elif (directory / TEXT_FOLDER).is_dir():
        shutil.rmtree(directory / TEXT_FOLDER)
    return save_folder(
        directory,
        state=state,
        description={"library": "tokenflow", **description, "image_tokenizer": name},
        card=card,
        max_shard_size=max_shard_size,
    )


class OnTheHub:
    """What `save_pretrained` writes, uploaded; `from_pretrained` of the class reads it back by the repository's id."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload TokenFlow model",
        revision: str | None = None,
        max_shard_size: int | str = MAX_SHARD_SIZE,
    ) -> str:
        """Upload model, text tokenizer and image tokenizer as one commit; makes the repository, and the branch.

        Returns the commit's address. Errors are huggingface_hub's own.
        """
        with tempfile.TemporaryDirectory() as temporary:
            directory = self.save_pretrained(temporary, image_tokenizer="copy", max_shard_size=max_shard_size)
            options = {"private": private, "token": token, "commit_message": commit_message, "revision": revision}
            return push_folder(directory, repo_id, **options)


def load_composed(
    source: str | Path,
    *,
    key: str,
    hint: str,
    build: Callable[[dict[str, Any]], Module],
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[Module, str | Path | None, Path]:
    """The inverse of `save_composed`, from a folder or a hub repository, without reading the tokenizers.

    Args:
        source: Folder or repository.
        key: Where config.json describes the model.
        hint: Ends the message about a folder of another kind.
        build: Makes the model, on `meta`, from its description.
        revision: Branch, tag or commit of the repository.
        token: Access token of the hub.

    Returns:
        The model in evaluation mode, in the dtype of its files and in memory maps of them; the image tokenizer's folder
        or name, None where none is named; and the folder, whose TEXT_FOLDER holds the text tokenizer.
    """
    directory = find_folder(source, revision=revision, token=token, patterns=None)
    with unchanged(directory):
        description = read_description(directory, key=key, hint=hint)
        state = read_weights(directory)
    with torch.device("meta"):
        model = build(description[key])
    assign_weights(model, state, source=str(directory))
    name = description.get("image_tokenizer")
    copied = name is not None and (directory / name).is_dir()
    return model.eval(), directory / name if copied else name, directory


def chosen_tokenizer(given: Any | None, named: str | Path | None, *, directory: Path) -> Any:
    """The image tokenizer that was given, else the folder's; ValueError where there is neither."""
    if given is None and named is None:
        raise ValueError(f"{directory} names no image tokenizer. Pass tokenizer= (a folder, or a TokenFlowTokenizer).")
    return named if given is None else given


def warn_of_other_codes(tokenizer: nn.Module, named: str | Path | None) -> None:
    """Warn where an image tokenizer in place of a folder's own has other codebooks: another decoder has the same."""
    if named is None or not (Path(named) / CONFIG_FILE).is_file():
        return
    found = tokenizer.state_dict()
    own = {name: value for name, value in read_weights(Path(named)).items() if ".codebook_" in name}
    if any(name not in found or not torch.equal(found[name].cpu(), value.float()) for name, value in own.items()):
        logger.warning(
            "this image tokenizer has other codebooks than %s, with which the model was trained: its codes mean other "
            "things. Give that one, or one of which the decoder alone is another.",
            named,
        )

"""Text tokenizers that a run trains itself, once, and keeps in its folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenflow.config import Launch
from tokenflow.language.text_tokenizer import load_text_tokenizer
from tokenflow.nn.composed_folder import TEXT_FOLDER
from tokenflow.train import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def kept_text_tokenizer(launch: Launch, train: Callable[[Path], None]) -> PreTrainedTokenizerBase:
    """The text tokenizer in the run's folder. Every rank calls it; rank 0 makes it where there is none.

    A run that goes on keeps it, and one that starts from a checkpoint or a model of another run takes that run's.

    Args:
        launch: The run's folder, and what it starts from.
        train: Writes a new tokenizer into a folder.
    """
    folder = launch.output / TEXT_FOLDER
    if distributed.is_main_process():
        earlier = _earlier_tokenizer(launch)
        if earlier is None:
            _replace(folder, train)
        elif earlier != folder:
            _replace(folder, lambda path: shutil.copytree(earlier, path))
    distributed.barrier()
    return load_text_tokenizer(folder)


def _earlier_tokenizer(launch: Launch) -> Path | None:
    """The trained tokenizer that the weights of this run have learned with, if there are such weights."""
    if launch.init_from is not None:
        candidates = [Path(launch.init_from) / TEXT_FOLDER, Path(launch.init_from).parent / TEXT_FOLDER]
    elif launch.resume == "auto":
        # Without a checkpoint nothing has been learned, and the data may have changed since a start that failed.
        candidates = [launch.output / TEXT_FOLDER] if any((launch.output / "checkpoints").glob("*")) else []
    elif launch.resume == "none":
        candidates = []
    else:
        candidates = [parent / TEXT_FOLDER for parent in Path(launch.resume).resolve().parents[:2]]
    return next((folder for folder in candidates if folder.is_dir()), None)


def _replace(folder: Path, make: Callable[[Path], object]) -> None:
    """Make a folder under another name first, so that a killed process leaves no half of one."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)

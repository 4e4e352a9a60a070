"""A checkpoint's files: which folders are complete, which is the newest, and how to be sure they are on disk."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = re.compile(r"step_(\d{8})$")


def newest_valid(folder: Path) -> Path | None:
    """The newest complete checkpoint below a folder; incomplete ones are passed over with a warning."""
    for candidate in sorted(folders(folder), reverse=True):
        problem = find_problem(candidate)
        if problem is None:
            return candidate
        logger.warning("%s is passed over: %s", candidate, problem)
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest in a run's folder.

    Raises:
        ValueError: There is none, or it is incomplete.
    """
    if FOLDER.search(path.name):
        problem = find_problem(path)
        if problem is not None:
            raise ValueError(f"cannot resume from {path}: {problem}")
        return path
    for folder in (path, path / "checkpoints"):
        found = newest_valid(folder)
        if found is not None:
            return found
    raise ValueError(f"cannot resume from {path}: expected a checkpoint (step_00001000) or a run's folder with one")


def find_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when every file is there in full."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        return "no manifest.json"
    except json.JSONDecodeError as error:
        return f"manifest.json is damaged ({error.msg})"
    for name, size in manifest.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, expected {size}"
    return None


def folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, in no order."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and FOLDER.fullmatch(path.name)]


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(folder.name.removeprefix("step_"))


def written(folder: Path) -> tuple[int, str]:
    """When a checkpoint was written (nanoseconds; its name for a tie), to sort by age."""
    manifest = folder / "manifest.json"
    return (manifest if manifest.exists() else folder).stat().st_mtime_ns, folder.name


def write(path: Path, text: str) -> None:
    """Write a file and wait until it is on disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything below a folder is on disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)

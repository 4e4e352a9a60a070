"""Where a command writes: refused before anything is loaded or computed, not after."""

from pathlib import Path


def check_folder(path: Path, *, option: str) -> None:
    """ValueError where `path` is neither a folder nor can become one."""
    existing = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not existing.is_dir():
        raise ValueError(f"{option} is {path}, but {existing} is a file; expected a folder. Choose another name.")


def check_file(path: Path, *, option: str) -> None:
    """ValueError where `path` is a folder, or lies in what cannot be one."""
    if path.is_dir():
        raise ValueError(f"{option} is {path}, which is a folder; expected a file. Add a name: {path / 'NAME'}")
    check_folder(path.absolute().parent, option=f"the folder of {option}")

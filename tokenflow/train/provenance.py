"""Where a run came from: git revision and library versions, for `run.json` and the tracker."""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("tokenflow", "torch", "deepspeed", "transformers", "numpy", "mlflow")


def versions() -> dict[str, Any]:
    """Git revision of this source tree (None outside one), python and library versions, time and machine."""
    found: dict[str, Any] = {"git": git_revision(), "python": platform.python_version(), "host": platform.node()}
    found["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


@functools.cache
def git_revision() -> str | None:
    """The commit of the source tree, with `+changes` when files differ from it; None when it is not a git checkout.

    Asked once a process: what runs is what was loaded at its start.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()

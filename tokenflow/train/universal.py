"""ZeRO shards made readable for any number of ranks (DeepSpeed's universal format)."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from tokenflow.train import distributed

logger = logging.getLogger(__name__)

SHARDS = "shards"
"""Tag under which an engine's shards lie in its folder."""


def make_universal(folder: Path) -> str:
    """Convert an engine's ZeRO shards so that any number of ranks can read them; keeps the result beside them.

    Args:
        folder: An engine's folder in a checkpoint. Every rank must call it.

    Returns:
        The tag to load.
    """
    tag = f"{SHARDS}_universal"
    if distributed.is_main_process() and not (folder / tag / "complete").exists():
        shutil.rmtree(folder / tag, ignore_errors=True)
        logger.info("converting %s for another number of ranks", folder)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        command += ["--input_folder", str(folder / SHARDS), "--output_folder", str(folder / tag)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{folder}: DeepSpeed cannot convert the shards: {done.stderr.strip()[-2000:]}")
        (folder / tag / "complete").touch()
    distributed.barrier()
    return tag

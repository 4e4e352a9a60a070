"""What evaluations have in common: options that are not theirs, and an output folder that all ranks agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenflow.config import Launch
from tokenflow.evaluation import partial
from tokenflow.train import distributed


def refuse_training_options(launch: Launch) -> None:
    """ValueError for options of a training run."""
    for name, value in (("ds_config", launch.ds_config), ("init_from", launch.init_from)):
        if value is not None:
            raise ValueError(
                f"--{name} {value}: an evaluation trains nothing. Leave it out; its model has the weights."
            )


def agreed_state(
    folder: Path, fingerprint: dict[str, Any], *, resume: str, begin: Callable[[], None] = lambda: None
) -> partial.State:
    """Rank 0's view of the output folder, ready to be written to; `begin` is called before an evaluation starts anew.

    Its error is every rank's.

    Raises:
        ValueError: The folder holds another evaluation, or `resume` is neither `auto` nor `none`.
    """
    if resume not in ("auto", "none"):
        raise ValueError(f"--resume {resume!r}: an evaluation takes auto (its own output folder) or none")
    answer = {}
    if distributed.is_main_process():
        try:
            answer["state"] = partial.find_state(folder, fingerprint) if resume == "auto" else "new"
            if answer["state"] == "new":
                begin()
                partial.begin(folder, fingerprint)
        except (ValueError, OSError) as error:
            answer["error"] = str(error)
    answer = json.loads(distributed.broadcast_text(json.dumps(answer)))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["state"]

"""Saves over an older model and dies at every rename and removal in turn; prints how each folder then loads.

Usage: python -m tests.tokenizer.killed_saves FOLDER OLD_SHARD_SIZE:NEW_SHARD_SIZE ...
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset


def constant(value: float) -> TokenFlowTokenizer:
    model = TokenFlowTokenizer(preset("tokenflow-nano"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def outcome(folder: Path) -> str:
    try:
        values = {value.unique().item() for value in TokenFlowTokenizer.from_pretrained(folder).parameters()}
    except OSError as error:
        clear = ("config.json is missing", "written anew while it was read")
        return "refused" if any(text in str(error) for text in clear) else f"unclear: {error}"
    return {(0.0,): "old", (1.0,): "new"}.get(tuple(values), f"mixed {values}")


def save_and_die(save: Callable[[], object], folder: Path, *, step: int) -> bool:
    """Save in a process of its own, which dies at its `step`-th rename or removal in the folder; whether it died."""
    child = os.fork()
    if child == 0:
        left = [step]

        def die(event: str, arguments: tuple) -> None:
            if event in ("os.rename", "os.remove") and str(folder) in str(arguments[0]):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(die)
        save()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def outcomes(folder: Path, old_size: str, new_size: str) -> Counter:
    old, new = constant(0.0), constant(1.0)
    counts = Counter()
    for step in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        old.save_pretrained(folder, max_shard_size=old_size)
        died = save_and_die(partial(new.save_pretrained, folder, max_shard_size=new_size), folder, step=step)
        counts[outcome(folder)] += 1
        if not died:
            break
        new.save_pretrained(folder, max_shard_size=new_size)
        assert outcome(folder) == "new"
        assert not list(folder.glob(".*")), "what a killed save left is still there"
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({sizes: outcomes(Path(sys.argv[1]), *sizes.split(":")) for sizes in sys.argv[2:]}))

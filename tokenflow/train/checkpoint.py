"""Checkpoints: atomic, complete, readable at another number of ranks, the newest valid one found by itself.

A checkpoint is written into a hidden folder beside the others, synced to disk, renamed, and only then named by the
file `latest`; a process killed at any moment leaves either the old or the new one. `manifest.json` lists every file
with its size: a folder without it, or with a file missing or short, is passed over.

    checkpoints/step_00000100/
        engines/<name>/shards/        DeepSpeed's shards (weights, optimiser, one part a rank)
        engines/<name>/average/       the running average, whole, safetensors
        engines/<name>/buffers/       running statistics, safetensors
        ranks/rank_00000.pt           random number generators and the task's own state, a file a rank
        state.json  recipe.yaml  run.json  manifest.json
    checkpoints/latest

Everything but DeepSpeed's shards is JSON, YAML, safetensors or read with `weights_only=True`. The shards are
pickles: resume only from folders that your own runs wrote.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from tokenflow.config import flatten, to_dict, to_yaml
from tokenflow.train import distributed
from tokenflow.train.checkpoint_files import (
    find_checkpoint,
    folders,
    newest_valid,
    step_of,
    sync,
    sync_tree,
    write,
    written,
)
from tokenflow.train.provenance import versions
from tokenflow.train.state import TrainState, capture_rng, restore_rng
from tokenflow.train.task import Engines, Task

logger = logging.getLogger(__name__)

MAY_CHANGE = (
    "name",
    "tracking",
    "evaluation_sources",
    "evaluation_images",
    "data.num_workers",
    "data.prefetch_batches",
    "train.steps",
    "train.micro_batch_size",
    "train.log_every",
    "train.evaluate_every",
    "train.save_every",
    "train.keep_last",
    "train.max_skipped_steps",
    "train.max_rollbacks",
    "train.hang_minutes",
)
"""Recipe keys that a resumed run may set differently: they do not change what a step computes (more `steps` does
change a schedule that decays; then a warning says so)."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        output: Path,
        *,
        recipe: Any = None,
        keep_last: int = 2,
        run_info: Callable[[], Mapping[str, Any]] = dict,
        may_change: tuple[str, ...] = MAY_CHANGE,
    ) -> None:
        """Every rank makes one; rank 0 removes what a killed run left half-written.

        Args:
            output: The run's folder, on a file system that all ranks share.
            recipe: What the run was asked to do (a dataclass or dictionary); a resume compares it.
            keep_last: How many checkpoints to keep.
            run_info: Further entries for `run.json`, such as the MLflow run id.
            may_change: Dotted recipe keys (or whole sections) that a resume may set differently.
        """
        self.folder = Path(output) / "checkpoints"
        self._recipe = to_dict(recipe) if recipe is not None else {}
        self._keep_last = keep_last
        self._run_info = run_info
        self._may_change = may_change
        if distributed.is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".partial_*"):
                shutil.rmtree(stale)
        distributed.barrier()

    def resume(self, task: Task, engines: Engines, *, mode: str, seed: int) -> TrainState:
        """Begin or go on, and leave every random number generator where it must be.

        Args:
            task: Gets its own state back.
            engines: Get weights, optimisers and averages back.
            mode: `auto` (the newest valid checkpoint of this run's folder, else a fresh start), `none` (a fresh start;
                older checkpoints are moved aside), or the path of a checkpoint or of another run's folder (later
                checkpoints of this run are moved aside).
            seed: The run's seed.

        Raises:
            ValueError: Another recipe, another ZeRO stage, or a path without a valid checkpoint.
        """
        if mode == "none":
            self._move_aside()
            found = None
        elif mode == "auto":
            found = self.find_latest()
        else:
            found = find_checkpoint(Path(mode))
        if found is None:
            distributed.seed_all(seed, distributed.rank())
            return TrainState(seed=seed)
        self._check_recipe(found)
        if mode != "auto":
            self._move_aside(after_step=step_of(found))
        logger.info("resuming from %s", found)
        return self.load(found, task, engines)

    def find_latest(self) -> Path | None:
        """The newest complete checkpoint of this run, the same on every rank; None when there is none."""
        found = newest_valid(self.folder) if distributed.is_main_process() else None
        text = distributed.broadcast_text(str(found) if found is not None else None)
        return Path(text) if text is not None else None

    def save(self, task: Task, engines: Engines, state: TrainState) -> Path:
        """Write a checkpoint of everything; every rank calls it.

        Returns:
            Its folder.
        """
        final = self.folder / f"step_{state.step:08d}"
        partial = self.folder / f".partial_{final.name}"
        if distributed.is_main_process():
            shutil.rmtree(partial, ignore_errors=True)
            for name in engines:
                (partial / "engines" / name).mkdir(parents=True)
            (partial / "ranks").mkdir()
        distributed.barrier()
        saved = {name: engine.save(partial / "engines" / name) for name, engine in engines.items()}
        torch.save(
            {"rng": capture_rng(), "task": dict(task.state_dict())},
            partial / "ranks" / f"rank_{distributed.rank():05d}.pt",
        )
        distributed.barrier()
        if distributed.local_rank() == 0:
            sync_tree(partial)
        distributed.barrier()
        if distributed.is_main_process():
            self._complete(partial, final, saved, state)
            self._prune(final)
        distributed.barrier()
        return final

    def load(self, folder: Path, task: Task, engines: Engines) -> TrainState:
        """Read a checkpoint into engines, task and this rank's random number generators; every rank calls it."""
        values = json.loads((folder / "state.json").read_text())
        state = TrainState.from_json(values["state"])
        self._load_engines(folder, task, engines, values)
        own = folder / "ranks" / f"rank_{distributed.rank():05d}.pt"
        if values["world_size"] == distributed.world_size():
            restore_rng(torch.load(own, weights_only=True)["rng"])
        else:
            # Other ranks, other streams: new ones, the same every time this checkpoint is read at this size.
            distributed.seed_all(state.seed, distributed.rank(), state.step, distributed.world_size())
        return state

    def roll_back(self, task: Task, engines: Engines) -> Path | None:
        """Return weights, optimisers, averages and the task's state to the newest checkpoint.

        Step, data and random numbers go on, so that what broke the run is not met again.

        Returns:
            The checkpoint's folder; None when there is none yet.
        """
        found = self.find_latest()
        if found is not None:
            self._load_engines(found, task, engines, json.loads((found / "state.json").read_text()))
        return found

    def run_info(self, folder: Path) -> dict[str, Any]:
        """What `run.json` of a checkpoint says."""
        return json.loads((folder / "run.json").read_text())

    def _load_engines(self, folder: Path, task: Task, engines: Engines, values: Mapping[str, Any]) -> None:
        if set(values["engines"]) != set(engines):
            raise ValueError(f"{folder} holds the engines {sorted(values['engines'])}; this run has {sorted(engines)}")
        for name, engine in engines.items():
            engine.load(folder / "engines" / name, values["engines"][name], world_size=values["world_size"])
        own = folder / "ranks" / f"rank_{distributed.rank():05d}.pt"
        if own.exists():
            task.load_state_dict(torch.load(own, weights_only=True)["task"])
        elif values["world_size"] == distributed.world_size():
            raise ValueError(f"{own} is missing; the checkpoint is incomplete")

    def _complete(self, partial: Path, final: Path, saved: Mapping[str, Any], state: TrainState) -> None:
        """Rank 0: the small files, the manifest, the rename, then `latest`."""
        world_size = distributed.world_size()
        write(
            partial / "state.json",
            json.dumps({"world_size": world_size, "state": state.to_json(), "engines": saved}, indent=1),
        )
        write(partial / "recipe.yaml", to_yaml(self._recipe))
        write(partial / "run.json", json.dumps({**versions(), **self._run_info()}, indent=1))
        files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        write(partial / "manifest.json", json.dumps(files, indent=1))
        sync(partial)
        if final.exists():
            # A resumed run came by again, or this one was found damaged.
            self._delete(final)
        os.rename(partial, final)
        sync(self.folder)
        self._name_latest(final)

    def _name_latest(self, newest: Path) -> None:
        write(self.folder / ".latest", newest.name)
        os.replace(self.folder / ".latest", self.folder / "latest")
        sync(self.folder)

    def _prune(self, newest: Path) -> None:
        # By age, not by step: a run that went back must not lose what it just wrote.
        others = sorted((folder for folder in folders(self.folder) if folder != newest), key=written)
        for old in others[: max(0, len(others) - self._keep_last + 1)]:
            self._delete(old)

    def _delete(self, folder: Path) -> None:
        # Renamed first: a half-deleted checkpoint must not look like one.
        doomed = folder.with_name(f".partial_deleted_{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)

    def _move_aside(self, *, after_step: int = -1) -> None:
        """Move this run's checkpoints after a step (all by default) to a folder of their own, with the metrics."""
        # Another rank may still be looking through the folder.
        distributed.barrier()
        own = sorted(folders(self.folder)) if distributed.is_main_process() else []
        later = [folder for folder in own if step_of(folder) > after_step]
        if later:
            number = 1
            while (aside := self.folder.with_name(f"checkpoints_before_{number}")).exists():
                number += 1
            aside.mkdir()
            metrics = self.folder.with_name("metrics.jsonl")
            if metrics.exists():
                shutil.copy2(metrics, aside)
            # The newest last: killed on the way, `auto` still finds what it would have found.
            for folder in later:
                os.rename(folder, aside / folder.name)
            kept = sorted(folders(self.folder))
            if kept:
                self._name_latest(kept[-1])
            else:
                (self.folder / "latest").unlink(missing_ok=True)
                if after_step < 0:
                    metrics.unlink(missing_ok=True)
            logger.info("checkpoints after the step to begin from are now in %s", aside)
        distributed.barrier()

    def _check_recipe(self, folder: Path) -> None:
        theirs = _compared(yaml.safe_load((folder / "recipe.yaml").read_text()) or {})
        ours = _compared(self._recipe)
        new = [key for key in ours if not _has(theirs, key) and not self._is_free(key)]
        if new:
            logger.warning(
                "%s was written before the recipe had %s",
                folder,
                ", ".join(f"{key} (now {ours[key]!r})" for key in new),
            )
        different = [
            f"{key}: {theirs.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} here"
            for key in sorted(set(theirs) | set(ours))
            if theirs.get(key) != ours.get(key) and not self._is_free(key) and key not in new
        ]
        if different:
            raise ValueError(
                f"{folder} was written by another recipe: {'; '.join(different)}. Give the run another --output, or "
                "start afresh with --resume none (with --init_from to keep the weights)."
            )
        if theirs.get("train.steps") != ours.get("train.steps"):
            logger.warning(
                "train.steps was %s and is now %s: a learning rate that decays over the run changes with it",
                theirs.get("train.steps"),
                ours.get("train.steps"),
            )

    def _is_free(self, key: str) -> bool:
        return any(key == free or key.startswith(f"{free}.") for free in self._may_change)


def _compared(recipe: Any) -> dict[str, Any]:
    """A recipe's values by dotted key, those of sections in lists too, so that a new key of one is seen as new."""
    found: dict[str, Any] = {}
    for key, value in flatten(recipe).items():
        if not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
            found[key] = value
            continue
        found[f"{key}.length"] = len(value)
        for number, item in enumerate(value):
            found |= flatten(_compared(item), prefix=f"{key}.{number}")
    return found


def _has(flat: Mapping[str, Any], key: str) -> bool:
    """Whether a flattened recipe sets a key, or a section around it to something without keys, such as null."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in flat for length in range(1, len(parts) + 1))

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
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from tokenflow.config import to_dict, to_yaml
from tokenflow.train import distributed
from tokenflow.train.provenance import versions
from tokenflow.train.state import TrainState, capture_rng, restore_rng
from tokenflow.train.task import Engines, Task

logger = logging.getLogger(__name__)

FOLDER = re.compile(r"step_(\d{8})$")

MAY_CHANGE = (
    "name",
    "tracking",
    "data.num_workers",
    "train.steps",
    "train.micro_batch_size",
    "train.log_every",
    "train.evaluate_every",
    "train.save_every",
    "train.keep_last",
    "train.max_skipped_steps",
    "train.max_rollbacks",
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
                older checkpoints are moved aside), or the path of a checkpoint or of another run's folder.
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
            _sync_tree(partial)
        distributed.barrier()
        if distributed.is_main_process():
            self._complete(partial, final, saved, state)
            self._prune()
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
        _write(
            partial / "state.json",
            json.dumps({"world_size": world_size, "state": state.to_json(), "engines": saved}, indent=1),
        )
        _write(partial / "recipe.yaml", to_yaml(self._recipe))
        _write(partial / "run.json", json.dumps({**versions(), **self._run_info()}, indent=1))
        files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        _write(partial / "manifest.json", json.dumps(files, indent=1))
        _sync(partial)
        if final.exists():
            # A resumed run came by again, or this one was found damaged.
            self._delete(final)
        os.rename(partial, final)
        _sync(self.folder)
        _write(self.folder / ".latest", final.name)
        os.replace(self.folder / ".latest", self.folder / "latest")
        _sync(self.folder)

    def _prune(self) -> None:
        for old in sorted(_folders(self.folder))[: -self._keep_last]:
            self._delete(old)

    def _delete(self, folder: Path) -> None:
        # Renamed first: a half-deleted checkpoint must not look like one.
        doomed = folder.with_name(f".partial_deleted_{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)

    def _move_aside(self) -> None:
        if distributed.is_main_process() and _folders(self.folder):
            number = 1
            while (aside := self.folder.with_name(f"checkpoints_before_{number}")).exists():
                number += 1
            os.rename(self.folder, aside)
            self.folder.mkdir()
            metrics = self.folder.with_name("metrics.jsonl")
            if metrics.exists():
                os.rename(metrics, aside / metrics.name)
            logger.info("a fresh start was asked for: older checkpoints are now in %s", aside)
        distributed.barrier()

    def _check_recipe(self, folder: Path) -> None:
        theirs = _flatten(yaml.safe_load((folder / "recipe.yaml").read_text()) or {})
        ours = _flatten(self._recipe)
        different = [
            f"{key}: {theirs.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} here"
            for key in sorted(set(theirs) | set(ours))
            if theirs.get(key) != ours.get(key) and not self._is_free(key)
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


def newest_valid(folder: Path) -> Path | None:
    """The newest complete checkpoint below a folder; incomplete ones are passed over with a warning."""
    for candidate in sorted(_folders(folder), reverse=True):
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


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and FOLDER.fullmatch(path.name)]


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)

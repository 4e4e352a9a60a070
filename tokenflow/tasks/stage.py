"""The middle of every training pipeline: resume, load data, fit, save."""

from __future__ import annotations

from typing import Any

from tokenflow.config import Launch
from tokenflow.data import Cursor, Loader
from tokenflow.train import Engines, Run, Task, distributed, fit


def engine_options(recipe: Any, launch: Launch) -> dict[str, Any]:
    """What every engine of a stage shares, as arguments of `Engine`: batches, steps, schedule, the DeepSpeed JSON."""
    return {
        "train": recipe.train,
        "schedule": recipe.schedule,
        "deepspeed": launch.deepspeed(),
        "deepspeed_source": str(launch.ds_config),
    }


def train_stage(recipe: Any, launch: Launch, *, task: Task, engines: Engines) -> bool:
    """Train, or continue, in the run's folder; whether it finished (and not: was stopped by a signal, and saved).

    Args:
        recipe: Any stage's recipe: `data`, `train`, `tracking` and `name` are read here.
        launch: Output folder, and what to resume.
        task: The stage.
        engines: Its engines, new: the checkpoint is loaded into them.
    """
    train = recipe.train
    with Run(launch.output, recipe=recipe, train=train, tracking=recipe.tracking, name=recipe.name) as run:
        state = run.resume(task, engines, mode=launch.resume)
        loader = Loader(
            recipe.data,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            seed=train.seed,
            cursor=Cursor.from_json(state.cursor) if state.cursor else None,
        )
        outcome = fit(task, engines, loader, state, run.hooks, train, checkpoints=run.checkpoints)
        loader.close()
    return outcome != "stopped"

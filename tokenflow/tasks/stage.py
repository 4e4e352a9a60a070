"""The middle of every training pipeline: resume, load data, fit, save; and a trained module, whole, for sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tokenflow.config import Launch
from tokenflow.data import Cursor, Loader
from tokenflow.train import Engine, Engines, Run, Task, distributed, fit
from tokenflow.train.weights import gathered

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def engine_options(recipe: Any, launch: Launch) -> dict[str, Any]:
    """What every engine of a stage shares, as arguments of `Engine`: batches, steps, schedule, the DeepSpeed JSON."""
    return {
        "train": recipe.train,
        "schedule": recipe.schedule,
        "deepspeed": launch.deepspeed(),
        "deepspeed_source": str(launch.ds_config),
    }


def train_stage(
    recipe: Any, launch: Launch, *, task: Task, engines: Engines, loader: Callable[..., Any] = Loader
) -> bool:
    """Train, or continue, in the run's folder; whether it finished (and not: was stopped by a signal, and saved).

    Args:
        recipe: Any stage's recipe: `data`, `train`, `tracking` and `name` are read here.
        launch: Output folder, and what to resume.
        task: The stage.
        engines: Its engines, new: the checkpoint is loaded into them.
        loader: Makes the loader of `recipe.data`, with the arguments of `Loader`.
    """
    train = recipe.train
    with Run(launch.output, recipe=recipe, train=train, tracking=recipe.tracking, name=recipe.name) as run:
        state = run.resume(task, engines, mode=launch.resume)
        batches = loader(
            recipe.data,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            seed=train.seed,
            cursor=Cursor.from_json(state.cursor) if state.cursor else None,
        )
        outcome = fit(task, engines, batches, state, run.hooks, train, checkpoints=run.checkpoints)
        batches.close()
    return outcome != "stopped"


@contextmanager
def whole_module(engine: Engine, build: Callable[[], ModuleT]) -> Iterator[ModuleT]:
    """The engine's module for sampling, whole on every rank and without ZeRO-3's hooks; nothing is copied.

    Sampling calls parts of a model many times; gathered once, it needs no lockstep. Every rank must enter together.
    `build` makes an empty module of the same kind, on `meta`.
    """
    with ExitStack() as stack:
        for parameter in engine.module.parameters():
            stack.enter_context(gathered(parameter))
        with torch.device("meta"):
            module = build()
        module.load_state_dict({name: value.detach() for name, value in engine.module.named_parameters()}, assign=True)
        yield module.to(engine.device).eval()

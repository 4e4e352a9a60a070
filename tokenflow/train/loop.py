"""The one training loop: fetch, step, guard, hooks, stop flag."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from tokenflow.train import distributed
from tokenflow.train.checkpoint import Checkpoints
from tokenflow.train.config import TrainConfig
from tokenflow.train.guards import NonFiniteError, StepGuard, StopSignal
from tokenflow.train.hooks import Hook
from tokenflow.train.state import TrainState, forked_rng, plain_cursor
from tokenflow.train.task import Engines, EvalResult, Task

logger = logging.getLogger(__name__)


def fit(
    task: Task,
    engines: Engines,
    loader: Iterator[tuple[Any, Any]],
    state: TrainState,
    hooks: Sequence[Hook],
    config: TrainConfig,
    *,
    checkpoints: Checkpoints | None = None,
) -> Literal["finished", "stopped"]:
    """Train until `config.steps`, or until a signal asks to stop. Every rank calls it.

    Args:
        task: What a step does.
        engines: What it trains, by name.
        loader: Gives `(micro_batch, cursor)`, this rank's micro-batches in order, without end.
        state: Where the run is; advanced in place.
        hooks: Told what happens, in this order.
        config: Steps, batch sizes, intervals, guards.
        checkpoints: Where to save and to roll back to; nothing is saved without it.

    Returns:
        `finished`, or `stopped` after SIGTERM, SIGUSR1 or SIGINT (a checkpoint was written; what the process then
        returns to its scheduler is the pipeline's choice).

    Raises:
        NonFiniteError: Steps stay non-finite after `max_rollbacks` rollbacks, or there is nothing to roll back to.
    """
    _train_mode(engines, True)
    _tell(hooks, "started", state, config)
    try:
        with StopSignal() as stop:
            outcome = _run(task, engines, loader, state, hooks, config, checkpoints, stop)
    except BaseException:
        _tell(hooks, "failed", state)
        raise
    _tell(hooks, "finished", state, outcome)
    # A launcher may kill the others when one rank is gone: none goes before rank 0 has closed its tracker.
    distributed.barrier()
    return outcome


def _run(
    task: Task,
    engines: Engines,
    loader: Iterator[tuple[Any, Any]],
    state: TrainState,
    hooks: Sequence[Hook],
    config: TrainConfig,
    checkpoints: Checkpoints | None,
    stop: StopSignal,
) -> Literal["finished", "stopped"]:
    """The steps themselves."""
    accumulation = config.accumulation(distributed.world_size())
    guard = StepGuard()
    clock = _Clock()
    while state.step < config.steps:
        terms = _accumulate(task, engines, loader, state, hooks, guard, accumulation)
        _tell(hooks, "entered", state, "agreeing")
        verdict = guard.judge(engines, stop=stop.requested)
        _tell(hooks, "entered", state, "updating")
        if verdict.non_finite:
            _skip(verdict.non_finite, task, engines, state, config, checkpoints)
        else:
            state.skipped_in_a_row = 0
            for engine in engines.values():
                engine.step(state.step)
        state.step += 1
        state.samples += config.global_batch_size
        clock.count(config.global_batch_size)
        _tell(hooks, "stepped", state)
        last = state.step == config.steps
        if state.step % config.log_every == 0 or last:
            _tell(hooks, "entered", state, "logging")
            _tell(hooks, "logged", state, _row(terms, engines, state, clock, accumulation))
        with clock.paused():
            if config.evaluate_every and (state.step % config.evaluate_every == 0 or last):
                _tell(hooks, "entered", state, "evaluating")
                _tell(hooks, "evaluated", state, evaluate(task, engines, state))
            due = config.save_every and state.step % config.save_every == 0
            if checkpoints is not None and (due or last or verdict.stop):
                _tell(hooks, "entered", state, "saving")
                _tell(hooks, "saving", state)
                _tell(hooks, "saved", state, checkpoints.save(task, engines, state))
        if verdict.stop and not last:
            return "stopped"
    return "finished"


@torch.no_grad()
def evaluate(task: Task, engines: Engines, state: TrainState) -> EvalResult:
    """Evaluate with averaged weights, without a trace in modules or random number generators."""
    _train_mode(engines, False)
    with ExitStack() as stack:
        stack.enter_context(forked_rng())
        for engine in engines.values():
            stack.enter_context(engine.averaged_weights())
        result = task.evaluate(engines, state)
    _train_mode(engines, True)
    if distributed.is_main_process():
        for alarm in result.alarms:
            logger.warning("step %d: %s", state.step, alarm)
    return result


def _accumulate(
    task: Task,
    engines: Engines,
    loader: Iterator[Any],
    state: TrainState,
    hooks: Sequence[Hook],
    guard: StepGuard,
    accumulation: int,
) -> dict[str, Tensor]:
    """All micro-batches of a step, forward and backward; the sum of their terms."""
    guard.start_step()
    for engine in engines.values():
        engine.start_step()
    total: dict[str, Tensor] = {}
    for index in range(accumulation):
        _tell(hooks, "entered", state, "loading")
        batch, cursor = next(loader)
        _tell(hooks, "entered", state, "computing")
        for engine in engines.values():
            engine.start_micro_batch(last=index == accumulation - 1)
        terms = task.train_step(engines, _to_device(batch, distributed.device()), state)
        guard.watch(terms)
        for name, value in terms.items():
            total[name] = total.get(name, 0) + value.detach().float()
    state.cursor = plain_cursor(cursor)
    return total


def _skip(
    names: tuple[str, ...],
    task: Task,
    engines: Engines,
    state: TrainState,
    config: TrainConfig,
    checkpoints: Checkpoints | None,
) -> None:
    """Discard a non-finite step; after too many in a row, go back to the last checkpoint's weights."""
    for engine in engines.values():
        engine.discard_gradients()
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    named = ", ".join(names)
    if distributed.is_main_process():
        logger.warning("step %d skipped: not finite: %s", state.step, named)
    if state.skipped_in_a_row < config.max_skipped_steps:
        return
    problem = f"step {state.step}: {state.skipped_in_a_row} steps in a row were not finite, the last one in {named}"
    remedy = "Lower the learning rate, look at the data of these steps, or train in fp32."
    if state.rollbacks >= config.max_rollbacks:
        raise NonFiniteError(f"{problem}; {state.rollbacks} rollbacks did not help. {remedy}")
    folder = checkpoints.roll_back(task, engines) if checkpoints is not None else None
    if folder is None:
        raise NonFiniteError(f"{problem}, and there is no checkpoint yet to roll back to. {remedy}")
    state.rollbacks += 1
    state.skipped_in_a_row = 0
    if distributed.is_main_process():
        logger.warning("%s; weights and optimisers rolled back to %s, the data goes on", problem, folder.name)


def _row(
    terms: Mapping[str, Tensor], engines: Engines, state: TrainState, clock: _Clock, accumulation: int
) -> dict[str, float]:
    """A step's metrics: its terms averaged over micro-batches and ranks, learning rates, gradient norms, speed."""
    row: dict[str, float] = {}
    if terms:
        means = distributed.mean_over_ranks(torch.stack(list(terms.values()))) / accumulation
        row.update(zip(terms, means.tolist(), strict=True))
    for name, engine in engines.items():
        row[f"learning_rate/{name}"] = engine.learning_rate
        if engine.gradient_norm is not None:
            row[f"gradient_norm/{name}"] = float(engine.gradient_norm)
    row["skipped_steps"] = float(state.skipped_steps)
    row["samples_per_second"] = clock.rate()
    return row


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    return batch


def _train_mode(engines: Engines, mode: bool) -> None:
    for engine in engines.values():
        engine.train(mode)


def _tell(hooks: Sequence[Hook], what: str, *arguments: Any) -> None:
    for hook in hooks:
        getattr(hook, what)(*arguments)


class _Clock:
    """Samples a second since the last row; evaluation and saving do not count."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._samples = 0

    def count(self, samples: int) -> None:
        self._samples += samples

    def rate(self) -> float:
        now = time.monotonic()
        rate = self._samples / max(1e-9, now - self._began)
        self._began, self._samples = now, 0
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

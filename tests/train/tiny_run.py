"""A small but real training script: a GAN on noise, or a regression with dropout; run by the tests of this folder.

Started plainly, it trains. Under a launcher (RANK, WORLD_SIZE, ...) it is one of the ranks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenflow import train
from tokenflow.train import distributed

WIDTH = 6
KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass
class Cursor:
    """How many samples of the endless stream are behind us."""

    samples: int


class NoiseLoader:
    """Micro-batches of an endless stream in which sample i is a function of i alone."""

    def __init__(
        self,
        config: train.TrainConfig,
        *,
        cursor: dict[str, int],
        pause: float = 0.0,
        sleep_at: tuple[int, ...] = (),
        journal: Path | None = None,
    ) -> None:
        self._size = config.micro_batch_size
        self._global = config.global_batch_size
        self._accumulation = config.accumulation(distributed.world_size())
        self._samples = cursor.get("samples", 0)
        self._next = 0
        self._pause = pause
        self._sleep_at = sleep_at
        self._journal = journal

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> tuple[dict[str, Tensor], Cursor]:
        time.sleep(self._pause)
        if (distributed.rank(), self._samples // self._global) == self._sleep_at:
            time.sleep(3600)
        first = self._samples + (distributed.rank() * self._accumulation + self._next) * self._size
        rows = [_sample(index) for index in range(first, first + self._size)]
        if self._journal is not None:
            with open(self._journal, "a") as file:
                file.write(f"{self._samples // self._global} {distributed.rank()} {first} {self._size}\n")
        self._next += 1
        if self._next == self._accumulation:
            self._next, self._samples = 0, self._samples + self._global
        return {"x": torch.stack(rows), "index": torch.arange(first, first + self._size)}, Cursor(self._samples)


def _sample(index: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(index))


class Regression(nn.Module):
    """Predicts the sum of squares of its input; dropout draws from the rank's generator."""

    def __init__(self, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(16, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = batch["x"]
        prediction = self.outer(self.dropout(torch.relu(self.norm(self.inner(x)))))
        return {"loss": functional.mse_loss(prediction[:, 0], x.square().sum(dim=1))}


class RegressionTask(train.OneModelTask):
    """Counts the samples it saw, as a task with a usage window does; can be fed a NaN at chosen steps."""

    def __init__(self, poisoned: frozenset[int] = frozenset(), *, evaluation_pause: float = 0.0) -> None:
        self.seen = 0
        self._poisoned = poisoned
        self._evaluation_pause = evaluation_pause

    def train_step(self, engines: train.Engines, batch: Any, state: train.TrainState) -> train.Metrics:
        if state.step in self._poisoned:
            batch = {**batch, "x": batch["x"] * float("nan")}
        self.seen += len(batch["x"])
        return super().train_step(engines, batch, state)

    def evaluate(self, engines: train.Engines, state: train.TrainState) -> train.EvalResult:
        (engine,) = engines.values()
        if distributed.rank() == distributed.world_size() - 1:
            time.sleep(self._evaluation_pause)
        batch = {"x": torch.stack([_sample(-1 - index) for index in range(8)])}
        image = torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()
        torch.rand(3)
        return train.EvalResult(metrics={"error": float(engine.module(batch)["loss"])}, images={"grid": image})

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Critic(nn.Module):
    """One path with batch norm, as a PatchGAN has, and one without, so that there is something to tell apart.

    No bias before a batch norm: its true gradient is zero, and Adam would make steps of the rounding errors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.Sequential(
            nn.Linear(WIDTH, 8, bias=False), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 1)
        )
        self.plain = nn.Sequential(nn.Linear(WIDTH, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(x) + self.plain(x)


class Discriminator(nn.Module):
    """Called once for real and fake together."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Critic()

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(real), self.network(fake)


class GanTask(train.OneModelTask):
    """Reconstruction plus a hinge GAN whose discriminator begins later, with an adaptive adversarial weight."""

    def __init__(self, *, start: int = 0, poisoned: frozenset[int] = frozenset()) -> None:
        self._start = start
        self._poisoned = poisoned

    def train_step(self, engines: train.Engines, batch: Any, state: train.TrainState) -> train.Metrics:
        generator, discriminator = engines["generator"], engines["discriminator"]
        real = batch["x"]
        fake = generator(real)
        # A leaf cuts the graph: every network behind the picture is passed backward once, which ZeRO-3 insists on, and
        # nothing but `backward` reaches the engine's output, which DeepSpeed insists on.
        image = fake.detach().requires_grad_()
        reconstruction = functional.mse_loss(image, real)
        with train.frozen(discriminator) as network:
            adversarial = -network.network(image).mean()
            if state.step in self._poisoned and distributed.rank() == distributed.world_size() - 1:
                # On one rank only: the others must learn of it.
                adversarial = adversarial * float("inf")
            push = torch.autograd.grad(adversarial, image)[0]
        pull = torch.autograd.grad(reconstruction, image)[0]
        weight = (pull.norm() / (push.norm() + 1e-4)).clamp(max=10)
        generator.backward((fake * (pull + 0.1 * weight * push)).sum())
        terms = {"reconstruction": reconstruction.detach(), "adversarial": adversarial.detach()}
        if state.step < self._start:
            return {**terms, "discriminator": torch.zeros(())}
        logits_real, logits_fake = discriminator(real, fake.detach())
        loss = functional.relu(1 - logits_real).mean() + functional.relu(1 + logits_fake).mean()
        discriminator.backward(loss)
        return {**terms, "discriminator": loss.detach()}


def build(arguments: argparse.Namespace, config: train.TrainConfig, stage: int) -> tuple[Any, dict[str, train.Engine]]:
    """The task and its engines."""
    deepspeed = {"zero_optimization": {"stage": stage, **json.loads(arguments.zero)}}
    optimizer = train.OptimizerConfig(learning_rate=arguments.learning_rate, weight_decay=0.01)
    schedule = train.ScheduleConfig(kind="cosine", warmup_steps=3)
    shared = {"train": config, "optimizer": optimizer, "schedule": schedule, "deepspeed": deepspeed}
    poisoned = frozenset(arguments.poison)
    if arguments.task == "gan":
        engines = {
            "generator": train.Engine(Generator, name="generator", ema_decay=config.ema_decay, **shared),
            "discriminator": train.Engine(Discriminator, name="discriminator", **shared),
        }
        return GanTask(start=arguments.start, poisoned=poisoned), engines
    factory = lambda: Regression(dropout=arguments.dropout)  # noqa: E731
    return RegressionTask(poisoned, evaluation_pause=arguments.evaluation_pause), {
        "model": train.Engine(factory, name="model", ema_decay=config.ema_decay, **shared)
    }


def run_stage(arguments: argparse.Namespace, stage: int, output: Path) -> str:
    """Train once, from wherever the folder says."""
    config = train.TrainConfig(
        steps=arguments.steps,
        global_batch_size=arguments.batch,
        micro_batch_size=arguments.micro_batch,
        precision=arguments.precision,
        gradient_clipping=arguments.clip,
        log_every=1,
        evaluate_every=arguments.evaluate_every,
        save_every=arguments.save_every,
        ema_decay=0.9,
        max_skipped_steps=2,
        max_rollbacks=2,
        hang_minutes=arguments.hang_minutes,
    )
    journal = output / f"journal_{distributed.rank()}_of_{distributed.world_size()}" if arguments.journal else None
    tracking = train.TrackingConfig(mlflow=arguments.mlflow, uri=arguments.mlflow_uri, system_metrics=False)
    recipe = {"train": config, "task": arguments.task, "dropout": arguments.dropout}
    with train.Run(output, recipe=recipe, train=config, tracking=tracking) as run:
        task, engines = build(arguments, config, stage)
        state = run.resume(task, engines, mode=arguments.resume)
        loader = NoiseLoader(
            config,
            cursor=state.cursor,
            pause=arguments.pause,
            sleep_at=tuple(arguments.sleep_at),
            journal=journal,
        )
        until = dataclasses.replace(config, steps=arguments.stop_at or config.steps)
        outcome = train.fit(task, engines, loader, state, run.hooks, until, checkpoints=run.checkpoints)
    weights = {name: engine.gathered_state_dict() for name, engine in engines.items()}
    averages = {name: engine.gathered_average() for name, engine in engines.items()}
    if distributed.is_main_process():
        torch.save({"weights": weights, "averages": averages, "state": state.to_json()}, output / "final.pt")
    return outcome


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stages", type=int, nargs="+", default=[0])
    parser.add_argument("--task", choices=["gan", "regression"], default="regression")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stop_at", type=int, default=0, help="end here, with the schedule of all steps")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--save_every", type=int, default=0)
    parser.add_argument("--evaluate_every", type=int, default=0)
    parser.add_argument("--poison", type=int, nargs="*", default=[])
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--zero", default="{}")
    parser.add_argument("--resume", default="auto")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--hang_minutes", type=float, default=8.0)
    parser.add_argument("--sleep_at", type=int, nargs="*", default=[], help="rank and step at which its loader hangs")
    parser.add_argument("--evaluation_pause", type=float, default=0.0, help="seconds, on the last rank alone")
    parser.add_argument("--journal", action="store_true", help="every rank writes down which samples it took")
    parser.add_argument("--mlflow", action="store_true")
    parser.add_argument("--mlflow_uri", default=None)
    parser.add_argument("--local_rank", type=int, default=-1)
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    torch.set_num_threads(1)
    distributed.initialize()
    for stage in arguments.stages:
        output = arguments.output / f"zero{stage}" if len(arguments.stages) > 1 else arguments.output
        outcome = run_stage(arguments, stage, output)
    sys.stdout.flush()
    os._exit(0 if outcome == "finished" else 3)


if __name__ == "__main__":
    main()

"""Jobs that train very small models with the batch scripts."""

from __future__ import annotations

from pathlib import Path

from tests.pipelines.world import generator_options
from tests.slurm.cluster import Cluster, Job
from tokenflow.train import read_rows

GENERATOR = "pipelines.gen_pretrain"
STEPS = 40
NAMED = ("--recipe", "--data", "--output", "--tokenizer", "--tracking.system_metrics")


def only_smaller(options: list[object]) -> list[object]:
    """A pipeline test's options without those that the batch scripts take from the environment."""
    pairs = zip(options[::2], options[1::2], strict=True)
    kept = [word for pair in pairs if pair[0] not in NAMED for word in pair]
    return [*kept, "--tracking.mlflow", "false"]


def conversation_options(*, steps: int) -> list[object]:
    """What makes the nano recipes of stages 4 and 5 short."""
    return [
        *("--train.steps", steps, "--train.global_batch_size", 8, "--train.micro_batch_size", 4),
        *("--train.log_every", 1, "--train.evaluate_every", 0, "--train.save_every", 2),
        *("--optimizer.name", "adamw", "--optimizer.learning_rate", 3e-3),
        *("--tracking.system_metrics", "false", "--tracking.mlflow", "false"),
    ]


def generate(
    cluster: Cluster,
    world: Path,
    tokenizer: Path,
    output: Path,
    *further: object,
    nodes: int = 1,
    steps: int = STEPS,
    options: tuple[str, ...] = (),
    **environment: object,
) -> Job:
    """Submit stage 3 with a nano generator that evaluates rarely and saves often."""
    smaller = only_smaller(generator_options(world, tokenizer, output, steps=steps))
    return cluster.submit(
        "stage3_generation.sh",
        *(*smaller, "--train.evaluate_every", 20, "--train.save_every", 4, *further),
        options=options,
        nodes=nodes,
        RECIPE="nano",
        OUTPUT=output,
        DATA=world / "train",
        TOKENIZER=tokenizer,
        DS_CONFIG="deepspeed_configs/zero1.json",
        **environment,
    )


def last_step(output: Path) -> int:
    """The step of a run's newest row; 0 when there is none yet."""
    rows = read_rows(output / "metrics.jsonl")
    return max((row["step"] for row in rows), default=0)

"""Stage 1: train a TokenFlow tokenizer.

    python -m pipelines.tokenizer_pretrain --recipe nano
    deepspeed pipelines/tokenizer_pretrain.py --recipe tokenflow-b --ds_config deepspeed_configs/zero1.json \\
        --data "/data/laion/{00000..09999}.tar" --output runs/tokenflow-b
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.tasks.pixels import evaluation_batches
from tokenflow.tasks.stage import train_stage
from tokenflow.tasks.tokenizer import TokenizerTask, build_engines, export
from tokenflow.tasks.tokenizer_plan import plan
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.train import EXIT_STOPPED, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the tokenizer; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(TokenizerRecipe, argv, stage="tokenizer_pretrain", description="Train a TokenFlow tokenizer.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(*plan(recipe, launch), sep="\n")
        return 0
    distributed.initialize()
    task = TokenizerTask(recipe, evaluation_batches=evaluation_batches(recipe))
    engines = build_engines(recipe, launch)
    if not train_stage(recipe, launch, task=task, engines=engines):
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model")
    return 0


if __name__ == "__main__":
    run_command(main)

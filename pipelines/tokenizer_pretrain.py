"""Stage 1: train a TokenFlow tokenizer.

    python -m pipelines.tokenizer_pretrain --recipe nano
    deepspeed pipelines/tokenizer_pretrain.py --recipe tokenflow-b --ds_config deepspeed_configs/zero1.json \\
        --data "/data/laion/{00000..09999}.tar" --output runs/tokenflow-b
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.data import Cursor, Loader
from tokenflow.tasks.tokenizer import TokenizerTask, build_engines, evaluation_batches, export
from tokenflow.tasks.tokenizer_plan import print_plan
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.train import EXIT_STOPPED, Run, distributed, fit


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the tokenizer; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(TokenizerRecipe, argv, stage="tokenizer_pretrain", description="Train a TokenFlow tokenizer.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print_plan(recipe, launch)
        return 0
    distributed.initialize()
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    task = TokenizerTask(recipe, evaluation_batches=evaluation_batches(recipe, **ranks))
    engines = build_engines(recipe, launch)
    with Run(launch.output, recipe=recipe, train=recipe.train, tracking=recipe.tracking, name=recipe.name) as run:
        state = run.resume(task, engines, mode=launch.resume)
        loader = Loader(
            recipe.data,
            global_batch_size=recipe.train.global_batch_size,
            micro_batch_size=recipe.train.micro_batch_size,
            seed=recipe.train.seed,
            cursor=Cursor.from_json(state.cursor) if state.cursor else None,
            **ranks,
        )
        outcome = fit(task, engines, loader, state, run.hooks, recipe.train, checkpoints=run.checkpoints)
        loader.close()
    if outcome == "stopped":
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model")
    return 0


if __name__ == "__main__":
    run_command(main)

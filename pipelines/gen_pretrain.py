"""Stage 3: train a transformer that paints pictures scale by scale, from captions or classes.

    python -m pipelines.gen_pretrain --recipe nano
    deepspeed pipelines/gen_pretrain.py --recipe llama2-7b --ds_config deepspeed_configs/zero3.json \\
        --tokenizer tokenflow-b-256 --data "/data/pictures/{00000..09999}.tar"
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.tasks.generation import GenerationParts, GenerationTask, build_engines, evaluation_batches, export
from tokenflow.tasks.generation_plan import plan
from tokenflow.tasks.generation_recipe import GenerationRecipe
from tokenflow.tasks.stage import train_stage
from tokenflow.train import EXIT_STOPPED, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the model; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(GenerationRecipe, argv, stage="gen_pretrain", description="Train a text-to-image generator.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(*plan(recipe, launch), sep="\n")
        return 0
    distributed.initialize()
    parts = GenerationParts(recipe, launch)
    task = GenerationTask(recipe, parts=parts, evaluation_batches=evaluation_batches(recipe))
    engines = build_engines(recipe, launch, parts=parts)
    if not train_stage(recipe, launch, task=task, engines=engines):
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model", parts=parts)
    return 0


if __name__ == "__main__":
    run_command(main)

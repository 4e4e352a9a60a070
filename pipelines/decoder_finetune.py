"""Stage 2: double a trained tokenizer's pixel decoder and train it on frozen codes; or just train it further.

    python -m pipelines.decoder_finetune --recipe nano
    deepspeed pipelines/decoder_finetune.py --recipe tokenflow-b --ds_config deepspeed_configs/zero1.json \\
        --tokenizer runs/tokenflow-b/model --data "/data/laion/{00000..09999}.tar"
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.tasks.decoder import DecoderTask, build_engines, export, load_frozen_tokenizer
from tokenflow.tasks.decoder_plan import plan
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.pixels import evaluation_batches
from tokenflow.tasks.stage import train_stage
from tokenflow.train import EXIT_STOPPED, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the tokenizer; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(DecoderRecipe, argv, stage="decoder_finetune", description="Train a larger pixel decoder.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(*plan(recipe, launch), sep="\n")
        return 0
    distributed.initialize()
    tokenizer = load_frozen_tokenizer(recipe)
    engines = build_engines(recipe, launch, tokenizer=tokenizer)
    task = DecoderTask(recipe, tokenizer=tokenizer, evaluation_batches=evaluation_batches(recipe))
    if not train_stage(recipe, launch, task=task, engines=engines):
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model", tokenizer=tokenizer)
    return 0


if __name__ == "__main__":
    run_command(main)

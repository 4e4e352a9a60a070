"""Stage 4: a language model gets eyes. By default only the projector learns, on pictures with descriptions.

    python -m pipelines.mllm_align --recipe nano
    deepspeed pipelines/mllm_align.py --recipe tokenflow-xl-vicuna-13b --ds_config deepspeed_configs/zero2.json \\
        --tokenizer tokenflow-xl --data blip_laion_cc_sbu_558k.json --data.images /data/pretrain/images
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.tasks.stage import train_stage
from tokenflow.tasks.understanding import (
    UnderstandingParts,
    UnderstandingTask,
    build_engines,
    export,
    show_supervision,
)
from tokenflow.tasks.understanding_plan import plan
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.train import EXIT_STOPPED, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Align a language model with an image tokenizer."""
    return run(argv, stage="mllm_align", description="Align a language model with an image tokenizer.")


def run(argv: Sequence[str] | None, *, stage: str, description: str) -> int:
    """Train, or continue training, and export the model; 0 when finished, 75 when stopped by a signal.

    Both stages run it: their recipes say what learns (`trains`) and where it starts (`language` or `continue_from`).
    """
    parsed = parse(UnderstandingRecipe, argv, stage=stage, description=description)
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(*plan(recipe, launch), sep="\n")
        return 0
    distributed.initialize()
    parts = UnderstandingParts(recipe)
    show_supervision(parts)
    task = UnderstandingTask(recipe, parts=parts, evaluation=parts.evaluation())
    engines = build_engines(recipe, launch, parts=parts)
    if not train_stage(recipe, launch, task=task, engines=engines, loader=parts.loader()):
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model", parts=parts)
    return 0


if __name__ == "__main__":
    run_command(main)

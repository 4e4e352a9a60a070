"""Before stage 4, where no pretrained language model fits: train a small one on text or conversations.

    python -m pipelines.lm_pretrain --recipe nano --data runs/demo/data/conversations/text.jsonl

What it exports is a Hugging Face folder, which mllm_align takes as `--language`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.tasks.conversation_batches import conversation_loader
from tokenflow.tasks.language import LanguageParts, LanguageRecipe, LanguageTask, build_engines, export
from tokenflow.tasks.language_plan import plan
from tokenflow.tasks.stage import train_stage
from tokenflow.train import EXIT_STOPPED, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the model; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(LanguageRecipe, argv, stage="lm_pretrain", description="Train a small language model on text.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(*plan(recipe, launch), sep="\n")
        return 0
    distributed.initialize()
    parts = LanguageParts(recipe, launch)
    task = LanguageTask(recipe, evaluation=parts.evaluation())
    engines = build_engines(recipe, launch, parts=parts)
    if not train_stage(recipe, launch, task=task, engines=engines, loader=conversation_loader(parts.prepare)):
        return EXIT_STOPPED
    export(engines, launch.output / "model", parts=parts)
    return 0


if __name__ == "__main__":
    run_command(main)

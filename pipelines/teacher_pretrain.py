"""Train the small CLIP-style teacher of the built-in world (or of any captioned pictures).

python -m pipelines.teacher_pretrain --recipe nano --data runs/demo/data/train --output runs/demo/teacher
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command
from tokenflow.tasks.stage import train_stage
from tokenflow.tasks.teacher import TeacherRecipe, TeacherTask, build_engines, export
from tokenflow.tasks.teacher_plan import plan
from tokenflow.train import EXIT_STOPPED, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the teacher; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(TeacherRecipe, argv, stage="teacher_pretrain", description="Train a small CLIP-style teacher.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(*plan(recipe, launch), sep="\n")
        return 0
    distributed.initialize()
    engines = build_engines(recipe, launch)
    if not train_stage(recipe, launch, task=TeacherTask(recipe), engines=engines):
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model")
    return 0


if __name__ == "__main__":
    run_command(main)

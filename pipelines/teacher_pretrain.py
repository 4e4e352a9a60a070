"""Train the small CLIP-style teacher of the built-in world (or of any captioned pictures).

python -m pipelines.teacher_pretrain --recipe nano --data runs/demo/data/train --output runs/demo/teacher
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command, to_yaml
from tokenflow.data import Cursor, Loader
from tokenflow.tasks.teacher import TeacherRecipe, TeacherTask, build_engines, export
from tokenflow.train import EXIT_STOPPED, Run, distributed, fit


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue training, and export the teacher; 0 when finished, 75 when stopped by a signal."""
    parsed = parse(TeacherRecipe, argv, stage="teacher_pretrain", description="Train a small CLIP-style teacher.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(to_yaml(recipe))
        return 0
    distributed.initialize()
    task = TeacherTask(recipe)
    engines = build_engines(recipe, launch)
    with Run(launch.output, recipe=recipe, train=recipe.train, tracking=recipe.tracking, name=recipe.name) as run:
        state = run.resume(task, engines, mode=launch.resume)
        loader = Loader(
            recipe.data,
            global_batch_size=recipe.train.global_batch_size,
            micro_batch_size=recipe.train.micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            seed=recipe.train.seed,
            cursor=Cursor.from_json(state.cursor) if state.cursor else None,
        )
        outcome = fit(task, engines, loader, state, run.hooks, recipe.train, checkpoints=run.checkpoints)
        loader.close()
    if outcome == "stopped":
        return EXIT_STOPPED
    export(recipe, engines, launch.output / "model")
    return 0


if __name__ == "__main__":
    run_command(main)

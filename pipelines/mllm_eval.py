"""Evaluate a multimodal model on the built-in world's questions, exact match by kind, existence as POPE scores it.

    python -m pipelines.mllm_eval --recipe nano --model runs/demo/sft/model

Public benchmarks: `python -m lmms_eval --model tokenflow --model_args pretrained=DIR --tasks pope,gqa`, with `.[lmms]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command, to_yaml
from tokenflow.tasks.evaluation_folder import refuse_training_options
from tokenflow.tasks.understanding_evaluation import UnderstandingEvaluationRecipe, evaluate_into
from tokenflow.train import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write `result.json` and `result.md` into the output folder."""
    parsed = parse(UnderstandingEvaluationRecipe, argv, stage="mllm_eval", description="Evaluate a multimodal model.")
    recipe, launch = parsed.recipe, parsed.launch
    refuse_training_options(launch)
    if launch.dry_run:
        print(to_yaml(recipe))
        return 0
    distributed.initialize()
    result = evaluate_into(recipe, launch.output, resume=launch.resume)
    if distributed.is_main_process():
        for name in ("overall", "heldout"):
            print(f"{name:<32} {result['metrics'][name]:.4f}")
        if "text" in result:
            print(f"\n{result['text']}\n")
        print(f"result.json and result.md written to {launch.output}")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    run_command(main)

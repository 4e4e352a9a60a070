"""Evaluate a text-to-image model: the built-in world under its exact verifier, GenEval, DPG-Bench.

python -m pipelines.gen_eval --recipe nano --model runs/demo/generation/model
torchrun --nproc_per_node 8 pipelines/gen_eval.py --recipe geneval --model DIR \\
        --benchmark.prompts geneval/prompts/evaluation_metadata.jsonl
torchrun --nproc_per_node 8 pipelines/gen_eval.py --recipe dpg --model DIR --benchmark.prompts ELLA/dpg_bench/prompts

Killed, it continues when it is started again in the same way. `OUTPUT/images` is what the official evaluators take; the
paper's figures are printed beside ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command, to_yaml
from tokenflow.tasks.evaluation_folder import refuse_training_options
from tokenflow.tasks.generation_evaluation import evaluate_into
from tokenflow.tasks.generation_evaluation_recipe import GenerationEvaluationRecipe
from tokenflow.train import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write `result.json`, `result.md` and pictures into the output folder."""
    parsed = parse(GenerationEvaluationRecipe, argv, stage="gen_eval", description="Evaluate a text-to-image model.")
    recipe, launch = parsed.recipe, parsed.launch
    refuse_training_options(launch)
    if launch.dry_run:
        print(to_yaml(recipe))
        return 0
    distributed.initialize()
    result = evaluate_into(recipe, launch.output, resume=launch.resume)
    if distributed.is_main_process():
        overall = {name: value for name, value in result["metrics"].items() if "/" not in name}
        for name, value in overall.items():
            print(f"{name:<32} {value if isinstance(value, str) else f'{value:.4f}'}")
        for name, reason in result["protocol"].get("not_measured", {}).items():
            print(f"{name} is not measured: {reason}")
        if "text" in result:
            print(f"\n{result['text']}\n")
        print(f"result.json and result.md written to {launch.output}")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    run_command(main)

"""Evaluate a tokenizer: PSNR, SSIM, LPIPS, rFID, Frechet distance in a teacher's space, codebook usage.

python -m pipelines.tokenizer_eval --verifier scenes \\
        --tokenizer runs/demo/tokenizer/model --data runs/demo/data/seen
torchrun --nproc_per_node 8 pipelines/tokenizer_eval.py --recipe imagenet-256 --tokenizer DIR --data /data/imagenet/val
torchrun --nproc_per_node 8 pipelines/tokenizer_eval.py --tokenizer DIR --data "/data/imagenet-val/{00..49}.tar"

Killed, it continues when it is started again in the same way; the paper's figures are printed beside the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command, to_yaml
from tokenflow.evaluation.paper_table import as_text
from tokenflow.tasks.evaluation_folder import refuse_training_options
from tokenflow.tasks.tokenizer_evaluation import EvaluationRecipe, evaluate_into
from tokenflow.train import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write `result.json`, `result.md` and `grid.png` into the output folder."""
    parsed = parse(EvaluationRecipe, argv, stage="tokenizer_eval", description="Evaluate a TokenFlow tokenizer.")
    recipe, launch = parsed.recipe, parsed.launch
    refuse_training_options(launch)
    if launch.dry_run:
        print(to_yaml(recipe))
        return 0
    distributed.initialize()
    result = evaluate_into(recipe, launch.output, resume=launch.resume)
    if distributed.is_main_process():
        for name, value in result["metrics"].items():
            print(f"{name:<28} {value if isinstance(value, str) else f'{value:.4f}'}")
        print(f"\n{as_text(result['paper_rows'])}\n")
        for name, reason in result["protocol"]["not_measured"].items():
            print(f"{name} not measured: {reason}")
        if result["protocol"]["left_out"] != "none":
            print(f"left out: {result['protocol']['left_out']}")
        print(f"result.json, result.md and grid.png written to {launch.output}")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    run_command(main)

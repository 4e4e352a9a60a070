"""Evaluate a tokenizer: PSNR, SSIM, LPIPS, rFID, Frechet distance in a teacher's space, codebook usage.

python -m pipelines.tokenizer_eval --verifier scenes \\
        --tokenizer runs/demo/tokenizer/model --data runs/demo/data/seen
torchrun --nproc_per_node 8 pipelines/tokenizer_eval.py --tokenizer DIR --data "/data/imagenet-val/{00..49}.tar"
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenflow.config import parse, run_command, to_yaml
from tokenflow.tasks.tokenizer_evaluation import EvaluationRecipe, evaluate
from tokenflow.train import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write `result.json` and `grid.png` into the output folder."""
    parsed = parse(EvaluationRecipe, argv, stage="tokenizer_eval", description="Evaluate a TokenFlow tokenizer.")
    recipe, launch = parsed.recipe, parsed.launch
    if launch.dry_run:
        print(to_yaml(recipe))
        return 0
    distributed.initialize()
    result = evaluate(recipe)
    if distributed.is_main_process():
        result.save(launch.output)
        for name, value in result.metrics.items():
            print(f"{name:<28} {value if isinstance(value, str) else f'{value:.4f}'}")
        print(f"result.json and grid.png written to {launch.output}")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    run_command(main)

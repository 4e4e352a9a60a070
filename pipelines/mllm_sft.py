"""Stage 5: visual instruction tuning. Projector and language model learn to answer questions about pictures.

    python -m pipelines.mllm_sft --recipe nano
    deepspeed pipelines/mllm_sft.py --recipe tokenflow-xl-vicuna-13b --ds_config deepspeed_configs/zero3.json \\
        --continue_from runs/align-xl/model --data llava_v1_5_mix665k.json --data.images /data/llava
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.mllm_align import run
from tokenflow.config import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Tune a multimodal model on instructions."""
    return run(argv, stage="mllm_sft", description="Tune a multimodal model on instructions.")


if __name__ == "__main__":
    run_command(main)

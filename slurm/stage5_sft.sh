#!/usr/bin/env bash
# Stage 5, instruction tuning:  sbatch slurm/stage5_sft.sh [options of pipelines.mllm_sft]
#SBATCH --job-name=stage5
#SBATCH --partition=gpu
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

RECIPE=${RECIPE:-tokenflow-b-vicuna-13b}
OUTPUT=${OUTPUT:-runs/sft-$RECIPE}
DS_CONFIG=${DS_CONFIG:-deepspeed_configs/zero3.json}
DATA=${DATA:-}           # conversations (.json, .jsonl); the recipe's when empty
IMAGES=${IMAGES:-}       # the folder of their pictures
TOKENIZER=${TOKENIZER:-} # as in stage 4; the recipe's when empty
ALIGNED=${ALIGNED:-}     # what stage 4 exported; the recipe's when empty

# shellcheck source=slurm/common.sh
source "${TOKENFLOW_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
train pipelines.mllm_sft ${DATA:+--data "$DATA"} ${IMAGES:+--data.images "$IMAGES"} \
  ${TOKENIZER:+--tokenizer "$TOKENIZER"} ${ALIGNED:+--continue_from "$ALIGNED"} "$@"

#!/usr/bin/env bash
# Stage 3, text to image:  sbatch slurm/stage3_generation.sh [options of pipelines.gen_pretrain]
#SBATCH --job-name=stage3
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

RECIPE=${RECIPE:-llama2-7b}
OUTPUT=${OUTPUT:-runs/generation-$RECIPE}
DS_CONFIG=${DS_CONFIG:-deepspeed_configs/zero3.json}
DATA=${DATA:-}           # captioned shards, or their codes; the recipe's when empty
TOKENIZER=${TOKENIZER:-} # what stage 2 exported; the recipe's when empty

# shellcheck source=slurm/common.sh
source "${TOKENFLOW_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
train pipelines.gen_pretrain ${DATA:+--data "$DATA"} ${TOKENIZER:+--tokenizer "$TOKENIZER"} "$@"

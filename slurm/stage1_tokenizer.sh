#!/usr/bin/env bash
# Stage 1, the tokenizer:  sbatch slurm/stage1_tokenizer.sh [options of pipelines.tokenizer_pretrain]
#SBATCH --job-name=stage1
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

RECIPE=${RECIPE:-tokenflow-b}
OUTPUT=${OUTPUT:-runs/$RECIPE}
DS_CONFIG=${DS_CONFIG:-deepspeed_configs/zero1.json}
DATA=${DATA:-} # shards or a folder; the recipe's when empty

# shellcheck source=slurm/common.sh
source "${TOKENFLOW_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
train pipelines.tokenizer_pretrain ${DATA:+--data "$DATA"} "$@"

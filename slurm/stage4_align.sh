#!/usr/bin/env bash
# Stage 4, a language model gets eyes:  sbatch slurm/stage4_align.sh [options of pipelines.mllm_align]
#SBATCH --job-name=stage4
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

RECIPE=${RECIPE:-tokenflow-b-vicuna-13b}
OUTPUT=${OUTPUT:-runs/align-$RECIPE}
DS_CONFIG=${DS_CONFIG:-deepspeed_configs/zero2.json}
DATA=${DATA:-}           # conversations (.json, .jsonl); the recipe's when empty
IMAGES=${IMAGES:-}       # the folder of their pictures
TOKENIZER=${TOKENIZER:-} # what stage 1 or 2 exported; the recipe's when empty
LANGUAGE=${LANGUAGE:-}   # the language model; the recipe's when empty

# shellcheck source=slurm/common.sh
source "${TOKENFLOW_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
train pipelines.mllm_align ${DATA:+--data "$DATA"} ${IMAGES:+--data.images "$IMAGES"} \
  ${TOKENIZER:+--tokenizer "$TOKENIZER"} ${LANGUAGE:+--language "$LANGUAGE"} "$@"

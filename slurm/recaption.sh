#!/usr/bin/env bash
# New captions by a Qwen-VL, a GPU a task:  DATA=shards sbatch slurm/recaption.sh [options of tools/recaption.py]
#SBATCH --job-name=recaption
#SBATCH --partition=gpu
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out

DATA=${DATA:?DATA is empty; expected the shards to caption, as in: DATA=shards sbatch slurm/recaption.sh}
OUTPUT=${OUTPUT:-runs/recaption} # the new shards
MODEL=${MODEL:-}                 # folder or hub id; the tool's when empty
# Shards are shared out by number: an array that is submitted again, with fewer or more tasks, continues as well.
PART=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))
PARTS=$SLURM_ARRAY_TASK_COUNT

# shellcheck source=slurm/common.sh
source "${TOKENFLOW_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

# How far this task's part is: the answers in the journals of its shards.
progress() {
  local journal number answers=0
  for journal in "$OUTPUT"/.recaption/shard-*.jsonl; do
    [[ -r $journal ]] || continue
    number=${journal##*/shard-}
    number=$((10#${number%.jsonl}))
    ((number % PARTS != PART)) || answers=$((answers + $(wc -l <"$journal")))
  done
  ((answers)) && echo "answer $answers" || echo "the start"
}

attempt "$PYTHON" tools/recaption.py "$DATA" --out "$OUTPUT" ${MODEL:+--model "$MODEL"} \
  --part "$PART" --parts "$PARTS" "$@"

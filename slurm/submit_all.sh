#!/usr/bin/env bash
# All stages as a chain; each begins when the one before has exported its model. Arguments go to every sbatch:
#   RUNS=runs/b PICTURES="/data/laion/{0000..0999}.tar" slurm/submit_all.sh --partition=h100
# What only one stage gets: STAGE3_SBATCH="--nodes=8" STAGE3_OPTIONS="--train.micro_batch_size 4" STAGE3_RECIPE=...
# One tokenizer serves all: TokenFlow-B at 256 pixels, with which Llama-2-7B paints (its recipes expect no other size).
# STAGES="4 5" TOKENIZER=tokenflow-b-224 submits some stages, from an artefact that is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

RUNS=${RUNS:-runs/all}
STAGES=${STAGES:-1 2 3 4 5}
PICTURES=${PICTURES:-}               # stages 1 and 2: shards or a folder
CAPTIONED=${CAPTIONED:-$PICTURES}    # stage 3: captioned shards
ALIGN_DATA=${ALIGN_DATA:-}           # stage 4: conversations
ALIGN_IMAGES=${ALIGN_IMAGES:-}       #          and the folder of their pictures
TUNE_DATA=${TUNE_DATA:-}             # stage 5: the same
TUNE_IMAGES=${TUNE_IMAGES:-$ALIGN_IMAGES}
TOKENIZER=${TOKENIZER:-}             # what the first of STAGES starts from, where that is not the stage before
LANGUAGE=${LANGUAGE:-}
ALIGNED=${ALIGNED:-}
STAGE1_RECIPE=${STAGE1_RECIPE:-tokenflow-b-256}
STAGE2_RECIPE=${STAGE2_RECIPE:-tokenflow-b-256}

command -v sbatch >/dev/null || {
  echo "error: there is no sbatch here; run this where jobs are submitted, or the stages by hand (README.md)" >&2
  exit 2
}

extra=("$@")
declare -A job

# submit STAGE BEFORE SCRIPT [NAME=VALUE...]: submit a stage after another one, unless it is not among STAGES.
submit() {
  local stage=$1 before=$2 script=$3 options=() words=() after=()
  [[ " $STAGES " == *" $stage "* ]] || return 0
  read -ra options <<<"$(value "STAGE${stage}_SBATCH")"
  read -ra words <<<"$(value "STAGE${stage}_OPTIONS")"
  [[ -z ${job[$before]:-} ]] || after=(--dependency="afterok:${job[$before]}" --kill-on-invalid-dep=yes)
  job[$stage]=$(env RECIPE="$(value "STAGE${stage}_RECIPE")" OUTPUT="$RUNS/stage$stage" "${@:4}" \
    sbatch --parsable "${after[@]}" "${extra[@]}" "${options[@]}" "slurm/$script" "${words[@]}")
  echo "stage $stage: job ${job[$stage]}${after[*]:+ after job ${job[$before]}}, into $RUNS/stage$stage"
}

value() { echo "${!1:-}"; }

# needs STAGE NAME: say so where nothing tells a stage what to read.
needs() {
  [[ " $STAGES " == *" $1 "* && -z ${!2} && "$(value "STAGE$1_OPTIONS")" != *--data* ]] || return 0
  echo "note: $2 is empty, so stage $1 reads what its recipe names" >&2
}

# made STAGE OTHERWISE: the model of a stage of this chain, or another where the chain begins later.
made() {
  if [[ -n ${job[$1]:-} ]]; then echo "$RUNS/stage$1/model"; else echo "$2"; fi
}

needs 1 PICTURES
needs 2 PICTURES
needs 3 CAPTIONED
needs 4 ALIGN_DATA
needs 4 ALIGN_IMAGES
needs 5 TUNE_DATA
needs 5 TUNE_IMAGES

submit 1 - stage1_tokenizer.sh DATA="$PICTURES"
submit 2 1 stage2_decoder.sh DATA="$PICTURES" TOKENIZER="$(made 1 "$TOKENIZER")"
# Stage 2 changes no code: where it is left out, the tokenizer of stage 1 serves.
last=1
[[ -z ${job[2]:-} ]] || last=2
submit 3 $last stage3_generation.sh DATA="$CAPTIONED" TOKENIZER="$(made $last "$TOKENIZER")"
submit 4 $last stage4_align.sh DATA="$ALIGN_DATA" IMAGES="$ALIGN_IMAGES" TOKENIZER="$(made $last "$TOKENIZER")" LANGUAGE="$LANGUAGE"
submit 5 4 stage5_sft.sh DATA="$TUNE_DATA" IMAGES="$TUNE_IMAGES" TOKENIZER="$(made $last "$TOKENIZER")" ALIGNED="$(made 4 "$ALIGNED")"

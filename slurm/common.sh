# shellcheck shell=bash
# What the batch scripts share. They source it after RECIPE, OUTPUT and the rest are set; docs/slurm.md explains it.
# A script is one job of one or more attempts: what stops an attempt early puts the job back into the queue.

set -uo pipefail

# ---- edit here for your cluster -------------------------------------------------------------------------------------
# module load gcc cuda
ROOT=${TOKENFLOW_ROOT:-$SLURM_SUBMIT_DIR}
cd "$ROOT" || exit 2
if [[ -z ${PYTHON:-} ]]; then PYTHON=python3; [[ ! -x .venv/bin/python ]] || PYTHON=$ROOT/.venv/bin/python; fi
# NCCL and gloo choose a network by themselves; name it where they choose wrongly (`ip -br addr` lists the names).
[[ -z ${INTERFACE:-} ]] || export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# Further words for srun, such as --container-image=... or --cpu-bind=...
read -ra SRUN_OPTIONS <<<"${SRUN_OPTIONS:-}"
# Attempts in a row that may begin at one step before the job gives up.
STUCK_AFTER=${STUCK_AFTER:-2}
# ---------------------------------------------------------------------------------------------------------------------

source "$ROOT/slurm/supervise.sh"
ATTEMPT=$((${SLURM_RESTART_COUNT:-0} + 1))
NOTES=$OUTPUT/slurm/$SLURM_JOB_ID
# Slurm takes the plain job id of an array's last task for the whole array.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
# Exit codes of a pipeline: options it cannot use; stopped by a signal, with a checkpoint.
REFUSED=2
STOPPED=75

# train MODULE [OPTION...]: one attempt of a training pipeline on every rank of the job.
train() {
  local options=(--recipe "$RECIPE" --output "$OUTPUT")
  [[ -z ${DS_CONFIG:-} ]] || options+=(--ds_config "$DS_CONFIG")
  rendezvous
  attempt "$PYTHON" -m "$1" "${options[@]}" "${@:2}"
}

# Where the ranks meet. Every attempt has its own port: what is left of the last one must not be joined.
rendezvous() {
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_PORT=$((10000 + (SLURM_JOB_ID * 10 + ATTEMPT) % 20000))
  export MASTER_ADDR MASTER_PORT
}

# How far the run has come: the step of its newest checkpoint. A script may define its own.
progress() {
  local newest=
  [[ ! -r $OUTPUT/checkpoints/latest ]] || newest=$(<"$OUTPUT/checkpoints/latest")
  [[ -n $newest ]] && echo "step $((10#${newest#step_}))" || echo "the start"
}

# attempt COMMAND...: run it on every rank, then end the job or put it back into the queue. Does not return.
attempt() {
  local began code first
  began=$(progress)
  stop_if_stuck "$began"
  mkdir -p "$OUTPUT/slurm"
  echo "$began" >>"$NOTES.attempts"
  rm -f "$NOTES.ended"
  say "attempt $ATTEMPT begins at $began on $SLURM_JOB_NODELIST"
  supervise srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${SRUN_OPTIONS[@]}" \
    bash "$ROOT/slurm/rank.sh" "$NOTES.ended" "$@"
  code=$?
  ((code != 0)) || exit 0
  # Making way for others is no sign of a run that cannot get further.
  ! preempted || sed -i '$d' "$NOTES.attempts"
  # srun reports the highest code, which is that of a rank it ended itself; the first rank to end knows the reason.
  if [[ -s $NOTES.ended ]]; then
    read -r first code <"$NOTES.ended"
    case $code in
      "$STOPPED") say "stopped by a signal, and saved" ;;
      *) say "the first to fail was $first, with exit code $code" ;;
    esac
  fi
  ((code != REFUSED)) || exit "$code"
  requeue "$code"
}

# Whether Slurm has told this attempt to make way for a job of higher priority.
preempted() {
  [[ $(scontrol show job --oneliner "$JOB") == *" PreemptTime="[0-9]* ]]
}

requeue() {
  # Cancelled, preempted or on a node that is gone: Slurm has decided already.
  [[ $(squeue --noheader --jobs="$JOB" --format=%T) == RUNNING ]] || exit "$1"
  stop_if_stuck "$(progress)"
  say "goes back into the queue at $(progress)"
  scontrol requeue "$JOB" || { say "cannot be requeued; sbatch it again to continue"; exit "$1"; }
  sleep 60 # until Slurm ends this script
  exit "$1"
}

# stop_if_stuck PROGRESS: end the job when its last attempts all began where the run still is.
stop_if_stuck() {
  local last
  [[ -r $NOTES.attempts ]] || return 0
  last=$(tail -n "$STUCK_AFTER" "$NOTES.attempts")
  (($(grep -cxF "$1" <<<"$last") >= STUCK_AFTER)) || return 0
  say "error: $STUCK_AFTER attempts in a row began at $1 and got no further, so the job is not requeued. The messages" \
    "above say why. When it is mended, the same sbatch command continues at $1."
  exit 1
}

say() {
  echo "[slurm $(date +%T)] job $JOB: $*"
}

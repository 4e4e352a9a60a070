#!/usr/bin/env bash
# rank.sh NOTES COMMAND...: one rank of a job step; notes who failed and how, the first to fail in the first line.
# shellcheck source=slurm/supervise.sh
source "$(dirname "$0")/supervise.sh"
supervise "${@:2}"
code=$?
((code == 0)) || echo "rank-$SLURM_PROCID-on-$SLURMD_NODENAME $code" >>"$1"
exit "$code"

#!/usr/bin/env bash
# Installs what tests/slurm needs (12 MB, a quarter of a minute) where that can be done: as root on Debian or Ubuntu.
# Elsewhere it says why not and succeeds; the tests are then skipped. `install.sh --check` only says what is in the way.
set -euo pipefail

PATH=$PATH:/usr/sbin
skipped="the tests in tests/slurm are skipped"
missing=()
for program in munged slurmctld slurmd sbatch srun scontrol; do
  command -v "$program" >/dev/null || missing+=("$program")
done
((${#missing[@]})) || exit 0
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "no Slurm here (${missing[*]} missing), and only root on Debian or Ubuntu can install it: $skipped"
  exit 0
fi
if [[ ${1:-} == --check ]]; then
  echo "no Slurm here (${missing[*]} missing): $skipped; tests/slurm/install.sh installs it"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd munge slurm-client; } >"$log" 2>&1 ||
  { tail -n 5 "$log"; echo "installing Slurm failed: $skipped"; }

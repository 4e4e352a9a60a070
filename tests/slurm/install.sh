#!/usr/bin/env bash
# Installs what tests/slurm needs (12 MB, a quarter of a minute) where that can be done: as root on Debian or Ubuntu.
# Elsewhere it says why not and succeeds; the tests are then skipped.
set -euo pipefail

PATH=$PATH:/usr/sbin
if command -v munged slurmctld slurmd sbatch srun scontrol >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "Slurm is not installed, and only root on Debian can install it here: the tests in tests/slurm will be skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd munge slurm-client; } >/tmp/slurm-install.log 2>&1 ||
  { tail -n 5 /tmp/slurm-install.log; echo "installing Slurm failed: the tests in tests/slurm will be skipped"; }

"""The cluster of these tests comes up, takes the scripts as they are, and goes without a trace."""

import shutil
import subprocess
import sys
import time

import pytest

from tests.slurm.cluster import what_is_missing
from tests.slurm.reaper import marked
from tests.train.launching import ROOT, clean_environment

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
JOBS = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]
START_AND_HANG = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
with Cluster(Path(sys.argv[1]), nodes=2):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_a_cluster_with_gpus_takes_the_scripts_as_they_are(cluster, script):
    cluster.command("sbatch", "--test-only", str(script))


def test_nodes_names_lead_to_this_host_without_touching_its_settings(cluster):
    listed = cluster.command("scontrol", "show", "hostnames", f"{cluster.nodes[0]},{cluster.nodes[1]}")
    assert listed.split() == cluster.nodes[:2]
    ping = cluster.command("srun", "--nodes=2", "--ntasks=2", "printenv", "SLURMD_NODENAME")
    assert sorted(ping.split()) == cluster.nodes[:2]


@pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())
def test_killed_tests_leave_no_daemon_behind(tmp_path):
    conf = tmp_path / "cluster" / "slurm.conf"
    conf.parent.mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", START_AND_HANG, str(conf.parent)],
        cwd=ROOT,
        env=clean_environment(),
        text=True,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None and owner.stdout.readline() == "up\n"
    assert len(marked(conf)) >= 4
    owner.kill()
    owner.communicate()
    until = time.monotonic() + 20
    while marked(conf):
        assert time.monotonic() < until, marked(conf)
        time.sleep(0.1)

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.launching import ROOT, clean_environment, curve, free_port, run
from tokenflow.train import distributed

KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_plain_python_is_one_process():
    assert distributed.launcher_environment({})["WORLD_SIZE"] == "1"


def test_a_launchers_variables_are_taken_as_they_are():
    given = dict(zip(KEYS, ("3", "8", "1", "node1", "1234"), strict=True))
    assert distributed.launcher_environment({**given, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}) == given


def test_part_of_a_launchers_variables_is_an_error():
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        distributed.launcher_environment({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


def test_srun_gives_rank_world_and_rendezvous():
    step = {
        "SLURM_PROCID": "5",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[003-006]",
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
    }
    found = distributed.launcher_environment(step)
    assert [found[key] for key in KEYS[:4]] == ["5", "8", "1", "gpu003"]
    assert found["MASTER_PORT"] == distributed.launcher_environment({**step, "SLURM_PROCID": "0"})["MASTER_PORT"]


def test_plain_python_in_a_batch_script_is_one_process():
    assert distributed.launcher_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(("local_rank", "visible", "device"), [("3", 0, "3"), ("3", 1, "0"), ("3", 8, "3")])
def test_deepspeed_is_told_a_device_that_the_process_sees(local_rank, visible, device):
    launched = dict(zip(KEYS, ("5", "8", local_rank, "node1", "1234"), strict=True))
    assert distributed.with_device(launched, visible=visible) == {**launched, "LOCAL_RANK": device}
    assert launched["LOCAL_RANK"] == local_rank


@pytest.mark.parametrize(("ranks", "line"), [("1", "error: broken"), ("2", "[rank 1] error: broken")])
def test_a_failing_rank_of_several_names_itself_and_does_not_tidy_up(ranks, line):
    script = """
import atexit
from tokenflow.config import run_command
def main():
    atexit.register(print, "tidied up")
    raise ValueError("broken")
run_command(main)
"""
    environment = {**clean_environment(), "WORLD_SIZE": ranks, "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (2, line)
    assert ("tidied up" in done.stdout) == (ranks == "1")


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_finished_rank_keeps_its_code_and_its_words_and_one_of_several_does_not_tidy_up(ranks):
    script = """
import atexit
from tokenflow.config import run_command
def main():
    atexit.register(print, "tidied up")
    print("said")
    return 75
run_command(main)
"""
    environment = {**clean_environment(), "WORLD_SIZE": ranks, "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stdout.split("\n")[0] == "said"
    assert ("tidied up" in done.stdout) == (ranks == "1")


def test_reductions_of_one_process_are_copies():
    distributed.initialize()
    tensor = torch.arange(3)
    for reduce in (distributed.sum_over_ranks, distributed.max_over_ranks):
        result = reduce(tensor)
        assert torch.equal(result, tensor) and result.data_ptr() != tensor.data_ptr()
    assert distributed.broadcast_text("abc") == "abc"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_launchers_start_two_ranks(tmp_path, launcher):
    bin_ = Path(sys.executable).parent
    port = str(free_port())
    commands = {
        "torchrun": [bin_ / "torchrun", "--nproc_per_node", "2", "--master_port", port],
        "deepspeed": [bin_ / "deepspeed", "--num_accelerators", "2", "--master_port", port],
    }
    if shutil.which(str(commands[launcher][0])) is None:
        pytest.skip(f"{launcher} is not installed beside {sys.executable}")
    script = [ROOT / "tests" / "train" / "tiny_run.py", "--output", tmp_path / "launched", "--steps", "3"]
    environment = {**clean_environment(), "PATH": f"{bin_}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(part) for part in [*commands[launcher], *script]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run("--output", tmp_path / "plain", "--steps", 3, "--dropout", 0.0)
    assert len(curve(tmp_path / "launched")) == 3

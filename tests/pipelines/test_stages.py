"""Stages end with the process that started them."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import signal, sys, time
def end(*_):
    print("stage saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("stage runs", flush=True)
time.sleep(60)
"""
STARTER = f"""
from pipelines.stages import ending_together, run_stage
try:
    with ending_together():
        run_stage(["-c", {STAGE!r}])
except KeyboardInterrupt:
    print("starter ends", flush=True)
"""


def test_a_stop_signal_reaches_the_stage_which_ends_first():
    starter = subprocess.Popen([sys.executable, "-c", STARTER], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert starter.stdout is not None and starter.stdout.readline() == "stage runs\n"
    starter.send_signal(signal.SIGTERM)
    # The stage holds the same pipe: this returns when it is gone too.
    assert starter.communicate(timeout=60)[0] == "stage saved\nstarter ends\n"
    assert starter.returncode == 0

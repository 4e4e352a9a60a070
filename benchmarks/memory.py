"""Growth of memory at the peak of some work: the process' resident memory, or on a GPU what torch allocated."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def peak_growth_mb(work: Callable[[], object], device: str) -> float:
    """Megabytes (2^20 bytes) that memory grows by at the peak of `work`.

    Call it in a fresh process (`number_of_fresh_process`): memory that was freed earlier would be used again unseen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size
    before_mb = _status_mb("VmRSS")
    work()
    return _status_mb("VmHWM") - before_mb


def number_of_fresh_process(module: str, arguments: Sequence[str]) -> float:
    """What `python -m module arguments` prints: one number."""
    command = [sys.executable, "-m", module, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory is measured on Linux only.")

"""Time of some work."""

import time
from collections.abc import Callable

import torch


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Wall time of `work` until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)

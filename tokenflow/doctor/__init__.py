"""What this machine has for TokenFlow, and whether a model works on it.

Nothing is downloaded and nothing is changed. Heavy packages (DeepSpeed, MLflow, flash-attn, apex) are looked up, not
imported; kernels are judged by running them once on small tensors.
"""

from pathlib import Path

from tokenflow.doctor import kernels, machine, models, software
from tokenflow.doctor.findings import Finding, render
from tokenflow.doctor.models import OverfitChoice

__all__ = ["Finding", "OverfitChoice", "examine", "render"]


def examine(model: str | Path | None = None, *, overfit_on: OverfitChoice | None = None) -> list[Finding]:
    """All findings, in reading order; `model` is a folder of one of our three kinds of model, to be tried as well.

    Raises ValueError for `overfit_on` without a text-to-image folder, or with a picture that cannot be read.
    """
    if overfit_on is not None and model is None:
        raise ValueError("--overfit needs a model that is to learn the picture; give --model DIR")
    groups = [
        machine.machine(),
        software.packages(),
        machine.torch_and_devices(),
        kernels.kernels(),
        software.accelerators(),
        software.measures(),
    ]
    found = [finding for group in groups for finding in group]
    return found + (list(models.model(model, overfit_on=overfit_on)) if model is not None else [])

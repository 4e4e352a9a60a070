"""Packages, optional accelerators, and the weights that measures need."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from tokenflow.doctor.findings import Finding, findings, installed_version
from tokenflow.evaluation.measure import NotMeasured
from tokenflow.evaluation.weights import INCEPTION_FILE, VGG16_FILE, find_weights, load_inception, load_lpips


def packages() -> Iterator[Finding]:
    """What setup.cfg asks for, against what is there."""
    found = findings("packages")
    try:
        wanted = [Requirement(line) for line in requires("tokenflow") or []]
    except PackageNotFoundError:
        yield found("tokenflow", "broken", "not installed, only on the path", "pip install -e . in the checkout")
        return
    wanted = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    good = []
    for item in wanted:
        have = installed_version(item.name)
        if have is None:
            yield found(item.name, "broken", f"not installed, expected {item.specifier}", f'pip install "{item}"')
        elif not item.specifier.contains(have, prereleases=True):
            yield found(item.name, "broken", f"{have}, expected {item.specifier}", f'pip install "{item}"')
        else:
            good.append(f"{item.name} {have}")
    yield found("required", "ok", f"{len(good)} of {len(wanted)}: {', '.join(good)}")
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "an embedded SQLite store beside the run")
    if installed_version("mlflow"):
        yield found("mlflow", "ok", f"{installed_version('mlflow')}, tracks into {tracking}")


def accelerators() -> Iterator[Finding]:
    """Optional kernels from elsewhere."""
    found = findings("optional accelerators")
    gpu = torch.cuda.is_available()
    absent = "missing" if gpu else "note"
    why = "" if gpu else " (of use with a GPU only)"
    flash = installed_version("flash-attn")
    yield found(
        "flash-attn",
        "ok" if flash else absent,
        flash or f"not installed{why}",
        "" if flash else "pip install flash-attn --no-build-isolation (needs nvcc, or a wheel for this torch)",
    )
    kind = apex_kind()
    yield found(
        "apex",
        {"nvidia": "ok", "other": "broken", "none": absent}[kind],
        {
            "nvidia": "NVIDIA apex with its fused optimisers",
            "other": "a package of that name is installed, but it is not NVIDIA's",
            "none": f"not installed{why}",
        }[kind],
        {
            "nvidia": "",
            "other": "pip uninstall apex; NVIDIA's comes from source only: https://github.com/NVIDIA/apex",
            "none": "from source only: https://github.com/NVIDIA/apex (the registry's package is something else)",
        }[kind],
    )
    triton = installed_version("triton")
    yield found(
        "triton",
        "ok" if triton else absent,
        triton or f"not installed{why}",
        "" if triton else "comes with torch for CUDA",
    )
    nvcc = shutil.which("nvcc")
    yield found(
        "nvcc",
        "ok" if nvcc else absent,
        nvcc or f"not found{why}",
        "" if nvcc else "the CUDA toolkit, to build flash-attn or apex",
    )


def apex_kind() -> Literal["nvidia", "other", "none"]:
    """Whether `apex` is NVIDIA's: that one has `apex.optimizers`. It is looked for without importing it."""
    spec = find_spec("apex")
    if spec is None:
        return "none"
    places = spec.submodule_search_locations or []
    return "nvidia" if any(Path(place, "optimizers").is_dir() for place in places) else "other"


def measures() -> Iterator[Finding]:
    """Weights that image measures need."""
    found = findings("measures")
    for name, file_name, load in (("LPIPS", VGG16_FILE, load_lpips), ("rFID", INCEPTION_FILE, load_inception)):
        path = find_weights(file_name)
        if path is not None:
            yield found(name, "ok", f"weights at {path}")
        else:
            absent = load()
            reason = absent.reason if isinstance(absent, NotMeasured) else ""
            yield found(name, "missing", "not measured: no weights", reason)
    hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    yield found(
        "model hub", "note" if offline else "ok", f"cache {hub}, {'HF_HUB_OFFLINE is set' if offline else 'not tried'}"
    )

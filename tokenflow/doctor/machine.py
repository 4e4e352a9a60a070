"""The computer: processor, memory, disk, tools, torch and its devices."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow.doctor.findings import GIB, Finding, findings, first_line


def machine() -> Iterator[Finding]:
    """The computer around Python."""
    found = findings("machine")
    yield found("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield found(
        "cpu", "ok", f"{cores} cores, {memory:.0f} GiB memory, {', '.join(_cpu_features()) or 'no AVX-512 or AMX'}"
    )
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield found(
        "disk",
        "ok" if free > 20 else "note",
        f"{free:.0f} GiB free in {Path.cwd()}",
        "" if free > 20 else "a nano run needs 1 GiB; a TokenFlow-XL checkpoint with optimiser state about 10 GiB",
    )
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free / GIB
        yield found(
            "shared memory",
            "ok" if size >= 1 else "note",
            f"{size:.1f} GiB free in /dev/shm",
            "" if size >= 1 else "in a container: --shm-size=8g, else data workers and NCCL may fail",
        )
    compiler = next((tool for tool in ("c++", "g++", "clang++") if shutil.which(tool)), None)
    yield _tool(
        "C++ compiler", compiler, "apt-get install g++; DeepSpeed builds its CPU collectives and CPU Adam with it"
    )
    yield _tool("ninja", "ninja" if shutil.which("ninja") else None, "pip install ninja, and put it on PATH")
    yield _tool(
        "numactl",
        "numactl" if shutil.which("numactl") else None,
        "apt-get install numactl; only for `deepspeed --bind_cores_to_rank`",
    )


def torch_and_devices() -> Iterator[Finding]:
    """torch, whether torchvision fits it, GPUs, and where bf16 runs."""
    found = findings("devices")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield found("torch", "ok", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        yield found("torchvision", "ok", f"{torchvision.__version__}, fits torch")
    except (ImportError, RuntimeError) as error:
        yield found(
            "torchvision",
            "broken",
            first_line(error),
            "install the two together and unpinned: pip install --upgrade torch torchvision",
        )
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        remedy = (
            "the driver is there but torch cannot use it: compare nvidia-smi's CUDA version with torch's"
            if driver
            else ""
        )
        yield found("gpu", "broken" if driver else "note", "none; everything runs on the CPU", remedy)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield found(
            f"gpu {index}",
            "ok",
            f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}",
        )
    where = "GPU" if torch.cuda.is_available() else "CPU"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if torch.cuda.is_available()
        else bool({"AVX512-BF16", "AMX-BF16"} & set(_cpu_features()))
    )
    yield found(
        "bf16",
        "ok" if native else "note",
        f"{'native' if native else 'emulated, slow'} on the {where}",
        "" if native else "train with --train.precision fp32 here",
    )
    backends = [name for name in ("nccl", "gloo") if getattr(torch.distributed, f"is_{name}_available")()]  # noqa: TID251
    yield found("collectives", "ok", ", ".join(backends))


def _tool(name: str, command: str | None, remedy: str) -> Finding:
    if command is None:
        return Finding(group="machine", name=name, status="missing", detail="not found", remedy=remedy)
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    return Finding(group="machine", name=name, status="ok", detail=(shown.splitlines() or [shutil.which(command)])[0])


def _cpu_features() -> list[str]:
    flags = Path("/proc/cpuinfo")
    known = {"avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
    words = set(flags.read_text().split()) if flags.is_file() else set()
    return [name for flag, name in known.items() if flag in words]

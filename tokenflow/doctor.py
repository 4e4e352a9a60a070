"""What this machine has for TokenFlow: installed, in use, missing, and how to get it.

Nothing is downloaded and nothing is changed. Heavy packages (DeepSpeed, MLflow, flash-attn, apex) are looked up, not
imported; kernels are judged by running them once on small tensors.
"""

import os
import platform
import shutil
import subprocess
import textwrap
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement

from tokenflow import TokenFlowTokenizer, __version__
from tokenflow.evaluation.measure import NotMeasured
from tokenflow.evaluation.weights import INCEPTION_FILE, VGG16_FILE, find_weights, load_inception, load_lpips
from tokenflow.ops.nearest_code import nearest_code

Status = Literal["ok", "missing", "broken", "note"]
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    status: Status
    """`ok`; `missing`: optional and absent; `broken`: needed and absent or failing; `note`: good to know."""
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """As plain JSON."""
        return asdict(self)


def examine(model: str | Path | None = None) -> list[Finding]:
    """All findings, in reading order; `model` is a tokenizer folder to be tried as well."""
    groups = [machine(), packages(), torch_and_devices(), kernels(), accelerators(), measures()]
    return [finding for group in groups for finding in group] + (list(tokenizer(model)) if model is not None else [])


def machine() -> Iterator[Finding]:
    """The computer around Python."""
    found = _findings("machine")
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


def packages() -> Iterator[Finding]:
    """What setup.cfg asks for, against what is there."""
    found = _findings("packages")
    try:
        wanted = [Requirement(line) for line in requires("tokenflow") or []]
    except PackageNotFoundError:
        yield found("tokenflow", "broken", "not installed, only on the path", "pip install -e . in the checkout")
        return
    wanted = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    good = []
    for item in wanted:
        have = _version(item.name)
        if have is None:
            yield found(item.name, "broken", f"not installed, expected {item.specifier}", f'pip install "{item}"')
        elif not item.specifier.contains(have, prereleases=True):
            yield found(item.name, "broken", f"{have}, expected {item.specifier}", f'pip install "{item}"')
        else:
            good.append(f"{item.name} {have}")
    yield found("required", "ok", f"{len(good)} of {len(wanted)}: {', '.join(good)}")
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "an embedded SQLite store beside the run")
    if _version("mlflow"):
        yield found("mlflow", "ok", f"{_version('mlflow')}, tracks into {tracking}")


def torch_and_devices() -> Iterator[Finding]:
    """torch, whether torchvision fits it, GPUs, and where bf16 runs."""
    found = _findings("devices")
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
            _first_line(error),
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


def kernels() -> Iterator[Finding]:
    """Which kernels this machine runs, each tried once on the device that training would use."""
    found = _findings("kernels in use")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, codebook = torch.randn(64, 8, device=device), torch.randn(512, 8, device=device)
    chosen = nearest_code([features], [codebook], weights=[1.0])
    agree = torch.equal(chosen, nearest_code([features], [codebook], weights=[1.0], backend="dense"))
    yield found(
        "nearest code",
        "ok" if agree else "broken",
        f"auto on {device.type}: {'equals' if agree else 'differs from'} the reference",
        "" if agree else "please report this with the output of tokenflow doctor --json",
    )
    working = sdpa_backends(device)
    yield found("attention", "ok", f"torch SDPA on {device.type}: {', '.join(working)}")


def sdpa_backends(device: torch.device) -> list[str]:
    """Backends of torch's attention that run on the device (bf16 on a GPU, fp32 on a CPU), fastest first."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query = torch.zeros(1, 2, 64, 64, device=device, dtype=dtype)
    working = []
    for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    F.scaled_dot_product_attention(query, query, query)
            except RuntimeError:
                continue
        working.append(backend.removesuffix("_ATTENTION").lower())
    return working


def accelerators() -> Iterator[Finding]:
    """Optional kernels from elsewhere."""
    found = _findings("optional accelerators")
    gpu = torch.cuda.is_available()
    absent = "missing" if gpu else "note"
    why = "" if gpu else " (of use with a GPU only)"
    flash = _version("flash-attn")
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
    triton = _version("triton")
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
    found = _findings("measures")
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
        "model hub", "note" if offline else "ok", f"cache {hub}, {'offline (HF_HUB_OFFLINE)' if offline else 'online'}"
    )


def tokenizer(folder: str | Path) -> Iterator[Finding]:
    """Whether a tokenizer loads here and what a round trip costs."""
    found = _findings(f"tokenizer {folder}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = TokenFlowTokenizer.from_pretrained(folder).eval().to(device)
        size = model.config.image_size
        images = torch.zeros(1, 3, size, size, device=device)
        codes = model.encode(images)
        begin = time.perf_counter()
        finite = bool(torch.isfinite(model.reconstruct(images)).all())
        seconds = time.perf_counter() - begin
    except (ValueError, OSError, RuntimeError) as error:
        yield found("load", "broken", _first_line(error), "give the folder that save_pretrained or a pipeline wrote")
        return
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield found(
        "load", "ok", f"{parameters / 1e6:.2f} M parameters, {size}x{size} pictures, {codes.shape[1]} codes each"
    )
    yield found(
        "round trip",
        "ok" if finite else "broken",
        f"{seconds:.2f} s a picture on {device}, {'finite' if finite else 'not finite'}",
        "" if finite else "the weights hold NaN or infinity: export an earlier checkpoint",
    )


def render(findings: list[Finding]) -> str:
    """The findings as text for a terminal: one line each, remedies below."""
    marks = {"ok": "ok", "missing": "--", "broken": "!!", "note": ".."}
    lines = [f"TokenFlow {__version__}"]
    group = None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        lines.append(_wrapped(f"  {marks[finding.status]}  {finding.name}: {finding.detail}", indent=6))
        if finding.remedy:
            lines.append(_wrapped(f"        {finding.remedy}", indent=8))
    broken = [finding.name for finding in findings if finding.status == "broken"]
    missing = [finding.name for finding in findings if finding.status == "missing"]
    lines += ["", f"needs mending: {', '.join(broken)}" if broken else "nothing needs mending"]
    lines += [f"optional and absent: {', '.join(missing)}"] if missing else []
    return "\n".join(lines)


def _wrapped(line: str, *, indent: int) -> str:
    return textwrap.fill(
        line, width=110, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _findings(group: str) -> Any:
    def found(name: str, status: Status, detail: str, remedy: str = "") -> Finding:
        return Finding(group=group, name=name, status=status, detail=detail, remedy=remedy)

    return found


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

"""Time and peak memory of the shared-index quantiser, forward and backward, against the bare matmul of its distances.

    python -m benchmarks.quantizer [--json] [--codebook_sizes 32768 131072] [--repeats 25] [--device cpu]

Features are 4 x 16 x 16 vectors of 32 + 8 dimensions (N = 1024). `time_ms` covers normalisation, search, lookup, losses
and the backward pass to features and codebooks; `matmul_ms` is `[N, 40] @ [40, K]` alone, which holds all N x K scores.
The two are timed in turn in one process and the best of the repeats is reported for each, which other work on the
machine disturbs least; the medians stand beside them. `extra_peak_mb` is the growth of the process' resident memory at
its peak (Linux: VmHWM, reset just before) over one forward and backward in a fresh process, gradients included; on a
GPU it is torch's peak allocation.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import torch

from benchmarks.memory import number_of_fresh_process, peak_growth_mb
from benchmarks.timing import milliseconds
from tokenflow.tokenizer.quantizer import QuantizerConfig, SharedIndexQuantizer

_CODE_WIDTHS = (32, 8)
_FEATURES = (4, sum(_CODE_WIDTHS), 16, 16)


def _workload(codebook_size: int, device: str) -> Callable[[], None]:
    torch.manual_seed(0)
    config = QuantizerConfig(codebook_size=codebook_size, code_widths=_CODE_WIDTHS, scales=(16,))
    quantizer = SharedIndexQuantizer(config).to(device)
    features = torch.randn(_FEATURES, device=device, requires_grad=True)
    cotangent = torch.randn(_FEATURES, device=device)

    def forward_backward() -> None:
        quantizer.zero_grad(set_to_none=True)
        features.grad = None
        output = quantizer(features)
        loss = (output.quantized * cotangent).sum() + output.codebook_loss + output.commitment_loss
        loss.backward()

    return forward_backward


def measure_time(codebook_size: int, *, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of the quantiser and of the bare matmul, measured in turn: best and median."""
    quantize = _workload(codebook_size, device)
    left = torch.randn(_FEATURES[0] * _FEATURES[2] * _FEATURES[3], _FEATURES[1], device=device)
    right = torch.randn(_FEATURES[1], codebook_size, device=device)
    times: list[float] = []
    matmul_times: list[float] = []
    for _ in range(repeats + 2):
        times.append(milliseconds(quantize, device))
        matmul_times.append(milliseconds(lambda: left @ right, device))
    times, matmul_times = times[2:], matmul_times[2:]
    return {
        "time_ms": min(times),
        "matmul_ms": min(matmul_times),
        "time_over_matmul": min(times) / min(matmul_times),
        "median_time_ms": statistics.median(times),
        "median_matmul_ms": statistics.median(matmul_times),
    }


def measure_peak_mb(codebook_size: int, *, device: str) -> float:
    """Growth of memory at the peak of one forward and backward; call it in a fresh process."""
    _workload(64, device)()  # starts the thread pools and loads kernels, which are not the quantiser's memory
    return peak_growth_mb(_workload(codebook_size, device), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a codebook size, nothing else")
    parser.add_argument("--codebook_sizes", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak_of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of is not None:
        print(measure_peak_mb(arguments.peak_of, device=arguments.device))
        return
    columns = ["codebook_size", "time_ms", "matmul_ms", "time_over_matmul"]
    columns += ["median_time_ms", "median_matmul_ms", "extra_peak_mb"]
    if not arguments.json:
        print(*columns)
    for codebook_size in arguments.codebook_sizes:
        row: dict[str, float] = {"codebook_size": codebook_size}
        row |= measure_time(codebook_size, repeats=arguments.repeats, device=arguments.device)
        peak_of = ["--peak_of", str(codebook_size), "--device", arguments.device]
        row["extra_peak_mb"] = number_of_fresh_process("benchmarks.quantizer", peak_of)
        rounded = {column: round(row[column], 3) for column in columns}
        if arguments.json:
            print(json.dumps(rounded), flush=True)
        else:
            print(*(f"{value:>{len(column)}}" for column, value in rounded.items()), flush=True)


if __name__ == "__main__":
    main()

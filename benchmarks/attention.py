"""Time and peak memory of attention's backends in a training step, at the paper's lengths: 128 text + 817 image tokens.

    python -m benchmarks.attention [--json] [--batch 1] [--heads 4] [--head_width 64] [--layers 2] [--device cpu]

A row a backend and workload. `attention` is the attention of one layer alone, `transformer` a small one; both forward
and backward, over `--batch` rows whose texts, padded on the left, differ in length (`--text equal` makes them all 128).
Backends are timed in turn and the best of the repeats is reported, which other work on the machine disturbs least.
`extra_peak_mb` is the growth of memory at its peak over one step in a fresh process (CPU: resident memory), gradients
and saved activations included. `error` is the largest difference of outputs and gradients to the `dense` backend, over
the reference's largest value, in the same run. A backend that cannot run here is named with the reason, and left out.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.memory import number_of_fresh_process, peak_growth_mb
from benchmarks.rows import print_rows
from benchmarks.timing import milliseconds
from tokenflow.language.config import LanguageConfig
from tokenflow.language.transformer import CausalTransformer
from tokenflow.ops.attention import AttentionBackend, attention, available_backends, resolve_backend
from tokenflow.ops.attention_layout import AttentionLayout, Sample

_TEXT = 128
_SCALES = (1, 2, 4, 6, 8, 10, 12, 14, 16)
_WORKLOADS = ("attention", "transformer")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def paper_layout(batch: int, *, text: str) -> AttentionLayout:
    """Rows of 128 + 817 positions; with `ragged` texts of 128, 99, 70, ... tokens behind padding."""
    lengths = [_TEXT - (29 * row) % 113 if text == "ragged" else _TEXT for row in range(batch)]
    rows = tuple((Sample(_TEXT - length, length, _SCALES),) for length in lengths)
    return AttentionLayout(rows, _TEXT + sum(scale * scale for scale in _SCALES))


def training_step(
    workload: str, backend: AttentionBackend, arguments: argparse.Namespace
) -> Callable[[], list[Tensor]]:
    """A forward and backward pass that returns output and gradients."""
    torch.manual_seed(0)
    layout = paper_layout(arguments.batch, text=arguments.text)
    device, dtype = arguments.device, _DTYPES[arguments.precision]
    tokens = layout.is_token(device)
    rows, length, heads, width = arguments.batch, layout.length, arguments.heads, arguments.head_width
    if workload == "attention":
        shape = (rows, length, heads, width)
        inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]

        def forward() -> Tensor:
            query, key, value = (x.transpose(1, 2) for x in inputs)
            return attention(query, key, value, layout=layout, backend=backend).transpose(1, 2)[tokens]
    else:
        sizes = {
            "vocabulary_size": 1,
            "width": heads * width,
            "mlp_width": 3 * heads * width,
            "depth": arguments.layers,
        }
        config = LanguageConfig(**sizes, heads=heads, kv_heads=heads, head_width=width, attention=backend)
        model = CausalTransformer(config).to(device, dtype)
        embeddings = torch.randn(rows, length, heads * width, device=device, dtype=dtype, requires_grad=True)
        inputs = [embeddings, *model.layers.parameters()]

        def forward() -> Tensor:
            return model(embeddings, layout=layout)[tokens]

    def step() -> list[Tensor]:
        output = forward()
        gradients = torch.autograd.grad(output.float().sin().mean(), inputs)
        return [output.detach(), *gradients]

    return step


def runnable(device: str) -> tuple[list[AttentionBackend], dict[str, str]]:
    """Backends that can train on a device, the reference first, and why the others cannot."""
    missing = {name: reason for name, reason in available_backends(device).items() if reason is not None}
    if device == "cpu":
        missing["flex"] = "FlexAttention has no backward on a CPU"
    return [name for name in available_backends(device) if name not in missing], missing


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference over the reference's largest value, the worst of all tensors."""
    errors = [
        ((left.float() - right.float()).abs().max() / right.float().abs().max()).item()
        for left, right in zip(found, expected, strict=True)
    ]
    return max(errors)


def measure_peak_mb(workload: str, backend: AttentionBackend, arguments: argparse.Namespace) -> float:
    """Growth of memory at the peak of one step; call it in a fresh process."""
    # Starts thread pools and loads kernels, which are not the backend's memory; on a GPU it compiles flex too.
    small = argparse.Namespace(**{**vars(arguments), "batch": 1, "heads": 1})
    training_step(workload, backend, small if arguments.device == "cpu" else arguments)()
    return peak_growth_mb(training_step(workload, backend, arguments), arguments.device)


def measure(workload: str, backends: list[AttentionBackend], arguments: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each backend, timed in turn."""
    steps = {backend: training_step(workload, backend, arguments) for backend in backends}
    results = {backend: step() for backend, step in steps.items()}
    peaks = {
        backend: number_of_fresh_process("benchmarks.attention", [*sys.argv[1:], "--peak_of", workload, backend])
        for backend in backends
    }
    times: dict[str, list[float]] = {backend: [] for backend in backends}
    for _ in range(arguments.repeats):
        for backend, step in steps.items():
            times[backend].append(milliseconds(step, arguments.device))
    chosen = resolve_backend("auto", device=arguments.device, dtype=_DTYPES[arguments.precision]).name
    return [
        {
            "workload": workload,
            "backend": backend,
            "auto": backend == chosen,
            "time_ms": round(min(times[backend]), 2),
            "median_time_ms": round(statistics.median(times[backend]), 2),
            "speedup_vs_dense": round(min(times["dense"]) / min(times[backend]), 2),
            "extra_peak_mb": round(peaks[backend], 1),
            "error": float(f"{relative_error(results[backend], results['dense']):.1e}"),
        }
        for backend in backends
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a backend and workload, nothing else")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head_width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2, help="of the small transformer")
    parser.add_argument("--text", choices=["ragged", "equal"], default="ragged", help="lengths of the rows' texts")
    parser.add_argument("--precision", choices=list(_DTYPES), default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak_of", nargs=2, metavar=("WORKLOAD", "BACKEND"), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.peak_of is not None:
        workload, backend = arguments.peak_of
        print(measure_peak_mb(workload, backend, arguments))
        return
    backends, missing = runnable(arguments.device)
    if not arguments.json:
        for name, reason in missing.items():
            print(f"# {name}: {reason}")
    rows = (row for workload in _WORKLOADS for row in measure(workload, backends, arguments))
    print_rows(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()

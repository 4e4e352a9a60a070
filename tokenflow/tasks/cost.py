"""What a run costs: states in memory and floating-point operations, counted from the models' sizes; nothing is run.

Operations are multiplications and additions of matrix products and convolutions; norms, activations and the optimiser
are left out, as is usual. A backward pass costs two forward passes, of which one is the gradient of the weights, which
frozen networks do without.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tokenflow.config import RECIPES, Launch, read_json, to_yaml
from tokenflow.language.config import LanguageConfig
from tokenflow.train import TrainConfig, estimate_memory, zero_stage

SHIPPED = RECIPES.parents[1] / "deepspeed_configs"
PEAK_FLOPS = 989e12
"""Of an H100 (SXM), dense bf16 products; an A100 has 312e12."""
UTILISATION = {"transformer": 0.40, "convolutions": 0.25}
"""ASSUMED share of the peak that training reaches; no GPU has run this code yet."""
WANTED_DAYS = 7
GPU_COUNTS = (1, 8, 64)
DAY = 86_400
TRAINED, THROUGH, FROZEN = 3, 2, 1
"""Forward passes that one use costs: of trained weights; of frozen ones that a gradient passes through; else."""


@dataclass(frozen=True, kw_only=True)
class EngineSize:
    """What is inside one engine."""

    trained: int
    """Parameters that learn."""
    frozen: int = 0
    """Parameters that do not, in the same precision and split like the others under ZeRO-3."""
    averaged: bool = False
    """Whether a running average is kept."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A recipe's run."""

    unit: str
    """What a sample is called, in the plural."""
    samples: int
    """Samples of the whole run."""
    flops: float
    """Operations a sample, forward and backward, recomputation included."""
    kind: str
    """Key of `UTILISATION`."""
    engines: tuple[EngineSize, ...]
    """Of the stage."""
    outside: int
    """Parameters of frozen networks outside the engines: whole on every rank, fp32."""
    precision: str
    """As in `TrainConfig`."""
    tokens: int | None = None
    """Positions a sample takes in a language model."""
    remark: str = ""
    """What the count assumes."""

    def memory(self, deepspeed: dict[str, Any], *, world_size: int) -> int:
        """Bytes of states on one rank's device; activations come on top."""
        estimates = [
            estimate_memory(
                trained=engine.trained,
                frozen=engine.frozen,
                deepspeed=deepspeed,
                world_size=world_size,
                precision=self.precision,  # type: ignore[arg-type]
                averaged=engine.averaged,
            )
            for engine in self.engines
        ]
        return sum(estimate.total for estimate in estimates) + 4 * self.outside

    @property
    def exaflops(self) -> float:
        """10^18 operations of the whole run."""
        return self.samples * self.flops / 1e18

    def days(self, gpus: int) -> float:
        """Days that the whole run takes at the assumed utilisation."""
        return self.flops * self.samples / (gpus * PEAK_FLOPS * UTILISATION[self.kind]) / DAY

    def rate(self, days: float = WANTED_DAYS) -> float:
        """Samples a second, over all GPUs, with which the run takes so many days."""
        return self.samples / (days * DAY)


def cost_of(
    train: TrainConfig,
    *,
    unit: str,
    flops: float,
    kind: str,
    trained: int,
    inside: int = 0,
    adversary: int = 0,
    outside: int = 0,
    tokens: int | None = None,
    remark: str = "",
) -> Cost:
    """The cost of a run of one model, perhaps with a discriminator (`adversary`: its parameters)."""
    model = EngineSize(trained=trained, frozen=inside, averaged=train.ema_decay is not None)
    return Cost(
        unit=unit,
        samples=train.steps * train.global_batch_size,
        flops=flops,
        kind=kind,
        engines=(model, EngineSize(trained=adversary)) if adversary else (model,),
        outside=outside,
        precision=train.precision,
        tokens=tokens,
        remark=remark,
    )


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, also on `meta`."""
    return sum(parameter.numel() for parameter in module.parameters())


def forward_flops(build: Callable[[], nn.Module], *inputs: Callable[[], Any]) -> int:
    """Operations of one forward pass of what `build` makes, on what `inputs` make; only shapes are computed."""
    with FakeTensorMode(), torch.no_grad():
        module = build().eval()
        with counting() as counter:
            module(*(make() for make in inputs))
    return counter.get_total_flops()


def counting() -> FlopCounterMode:
    """Counts operations while it is entered; torch's own leaves out attention on a CPU."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def picture(size: int, *, channels: int = 3) -> Callable[[], Tensor]:
    """Makes a picture, or a map of so many channels, as an input of `forward_flops`."""
    return lambda: torch.zeros(1, channels, size, size)


def layer_flops(language: LanguageConfig, *, positions: int, pairs: float) -> float:
    """Operations of one forward pass of a transformer's layers over a row, without table and head.

    Args:
        language: Sizes.
        positions: Of the row.
        pairs: Of positions that see one another.
    """
    queries, keys = language.heads * language.head_width, language.kv_heads * language.head_width
    weights = 2 * language.width * (queries + keys) + 3 * language.width * language.mlp_width
    return 2.0 * language.depth * (positions * weights + 2 * pairs * queries)


def trained_layers(language: LanguageConfig, forward: float, *, passes: int = TRAINED) -> float:
    """Operations of layers in training; checkpointing computes them once more."""
    return forward * (passes + (language.checkpointing == "layer"))


def causal_pairs(positions: int) -> float:
    """Pairs of positions of which the one sees the other, or itself."""
    return positions * (positions + 1) / 2


def with_stage(deepspeed: dict[str, Any], stage: int) -> dict[str, Any]:
    """The same configuration with another ZeRO stage, without offload; the shipped one where none is given."""
    if not deepspeed and (SHIPPED / f"zero{stage}.json").is_file():
        return read_json(SHIPPED / f"zero{stage}.json")
    changed = copy.deepcopy(deepspeed)
    zero = changed.setdefault("zero_optimization", {})
    zero["stage"] = stage
    for name in ("offload_optimizer", "offload_param"):
        zero.pop(name, None)
    return changed


def gpu_counts() -> tuple[int, ...]:
    """Numbers of GPUs that a plan shows: a few, and the one it was launched with."""
    launched = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "0")))
    return tuple(sorted({*GPU_COUNTS, launched} - {0}))


def parameter_line(name: str, count: int) -> str:
    """A row of a plan's table of parameters."""
    return f"{name:<28} {count:>14,} parameters"


def closing_lines(cost: Cost, recipe: Any, launch: Launch) -> Iterator[str]:
    """What every dry run ends with: memory, time, the resolved recipe."""
    yield ""
    yield from cost_lines(cost, launch, gpus=gpu_counts())
    yield ""
    yield "# resolved recipe"
    yield to_yaml(recipe)


def cost_lines(cost: Cost, launch: Launch, *, gpus: tuple[int, ...]) -> Iterator[str]:
    """Memory and time."""
    json = launch.deepspeed()
    given = zero_stage(json)
    yield f"# GiB a GPU for states, {cost.precision}; activations come on top (this run: ZeRO-{given})"
    yield f"{'':<10}" + "".join(f"{f'ZeRO-{stage}':>10}" for stage in range(4))
    for world_size in gpus:
        cells = [
            cost.memory(json if stage == given and json else with_stage(json, stage), world_size=world_size)
            for stage in range(4)
        ]
        yield f"{world_size:>5} GPUs" + "".join(f"{value / 1024**3:>10.2f}" for value in cells)
    yield f"of it {4 * cost.outside / 1024**3:.2f} GiB frozen networks, whole on every GPU"
    yield ""
    yield "# compute, counted from the models' sizes; throughput on GPUs has not been measured"
    yield f"{cost.samples:,} {cost.unit} of {figure(cost.flops / 1e12)} TFLOP: {figure(cost.exaflops)} EFLOP"
    if cost.remark:
        yield cost.remark
    tokens = f" ({figure(cost.rate() * cost.tokens)} tokens/s)" if cost.tokens else ""
    yield f"to end within {WANTED_DAYS} days: {figure(cost.rate())} {cost.unit}/s{tokens}"
    share = f"{UTILISATION[cost.kind]:.0%} (an assumption) of {PEAK_FLOPS / 1e12:.0f} TFLOP/s (H100, bf16)"
    yield f"days at {share}: " + ", ".join(f"{figure(cost.days(count))} on {count}" for count in gpus)


def figure(value: float) -> str:
    """Three digits of a number, as people write them."""
    if value < 0.001:
        return "<0.001"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"

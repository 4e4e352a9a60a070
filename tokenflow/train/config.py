"""What a recipe says about training, and how it meets the DeepSpeed JSON.

One owner a key: the recipe owns batch sizes, accumulation, learning rate, clipping and precision; the JSON owns
ZeRO, offload and buckets. Where both speak and disagree, that is an error which names both.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.train.distributed import COLLECTIVE_MINUTES
from tokenflow.train.schedule import OptimizerConfig

SLOW_PHASE_FACTOR = 4
"""How much longer a rank may be in a first step, an evaluation or a checkpoint before it counts as hanging."""

JSON_KEYS = frozenset(
    {
        "zero_optimization",
        "aio",
        "communication_data_type",
        "comms_logger",
        "data_types",
        "dump_state",
        "flops_profiler",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "steps_per_print",
        "wall_clock_breakdown",
    }
)
"""Top-level keys that a DeepSpeed JSON may set here."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, whatever it trains."""

    steps: int
    """Optimiser steps of the whole run."""
    global_batch_size: int
    """Samples an optimiser step, over all ranks and micro-batches."""
    micro_batch_size: int
    """Samples that one rank holds at once; accumulation follows from it and the number of ranks."""
    precision: Literal["fp32", "bf16", "bf16_autocast"] = "fp32"
    """`bf16` keeps the parameters in bf16 (with fp32 masters); `bf16_autocast` keeps them in fp32 and casts inside the
    forward pass, which a tokenizer needs: its nearest-code search must see fp32 features."""
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    seed: int = 0
    """Seed of initial weights, data order and every random draw."""
    log_every: int = 10
    """Steps between two rows of metrics."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0 means never."""
    save_every: int = 1000
    """Steps between two checkpoints; one is always written at the end. 0 means only then."""
    keep_last: int = 2
    """How many checkpoints to keep."""
    ema_decay: float | None = None
    """Decay of the running average of the weights; none without it."""
    max_skipped_steps: int = 5
    """Non-finite steps in a row that are skipped before rolling back to the last checkpoint."""
    max_rollbacks: int = 3
    """Rollbacks after which the run stops with an error."""
    hang_minutes: float = 8.0
    """Minutes after which a rank that stopped answering, or stands still in a step while others wait, is named and
    the run ends (exit code 76); four times that in a first step, an evaluation or a checkpoint. 0 switches it off.
    The default is below the ten minutes after which NCCL's own watch ends a process without naming anybody."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.global_batch_size < 1 or self.micro_batch_size < 1:
            raise ValueError(
                f"steps {self.steps}, global_batch_size {self.global_batch_size}, micro_batch_size "
                f"{self.micro_batch_size}: expected all three to be at least 1"
            )
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}. Change one of them."
            )
        if self.gradient_clipping < 0:
            raise ValueError(f"gradient_clipping is {self.gradient_clipping}; expected 0 (off) or above, such as 1.0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected a number in (0, 1) such as 0.9999, or null")
        if self.log_every < 1 or self.keep_last < 1:
            raise ValueError(f"log_every {self.log_every} and keep_last {self.keep_last}: expected both at least 1")
        if self.evaluate_every < 0 or self.save_every < 0:
            raise ValueError(
                f"evaluate_every {self.evaluate_every} and save_every {self.save_every}: expected 0 (off) or above"
            )
        if self.max_skipped_steps < 1 or self.max_rollbacks < 0:
            raise ValueError(
                f"max_skipped_steps {self.max_skipped_steps} and max_rollbacks {self.max_rollbacks}: expected at "
                "least 1 and at least 0"
            )
        longest = COLLECTIVE_MINUTES / SLOW_PHASE_FACTOR
        if not 0 <= self.hang_minutes <= longest:
            raise ValueError(
                f"hang_minutes is {self.hang_minutes}; expected 0 (off) to {longest:g}: a collective gives up after "
                f"{COLLECTIVE_MINUTES:g} minutes, and a slow phase has {SLOW_PHASE_FACTOR} times hang_minutes"
            )

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a rank and step.

        Raises:
            ValueError: The global batch does not divide by micro batch times ranks.
        """
        share = self.micro_batch_size * world_size
        if self.global_batch_size % share:
            each, rest = divmod(self.global_batch_size, world_size)
            largest = max((size for size in range(1, self.micro_batch_size) if each % size == 0), default=1)
            remedy = (
                f"a number of ranks that divides {self.global_batch_size}" if rest else f"micro_batch_size {largest}"
            )
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide into {world_size} ranks with "
                f"micro_batch_size {self.micro_batch_size}. Use {remedy}; for a new run, also a multiple of {share}."
            )
        return self.global_batch_size // share


def zero_stage(deepspeed: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed JSON; 0 when it names none."""
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    return 0 if stage == "auto" else int(stage)


def offload_device(deepspeed: dict[str, Any]) -> str | None:
    """Where a DeepSpeed JSON puts the optimiser states: None (with the parameters), `cpu` or `nvme`."""
    device = (deepspeed.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device", "none")
    return None if device in ("none", "auto") else device


def merge_deepspeed_config(
    deepspeed: dict[str, Any],
    train: TrainConfig,
    optimizer: OptimizerConfig | None = None,
    *,
    world_size: int,
    source: str = "the DeepSpeed JSON",
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: ZeRO, offload and buckets of the JSON, the rest of the recipe.

    Args:
        deepspeed: The JSON, read; not changed.
        train: Batch sizes, clipping and precision.
        optimizer: What an `optimizer` section of the JSON is compared with.
        world_size: Ranks of the run.
        source: The JSON's name for error messages.

    Raises:
        ValueError: The JSON sets a key of the recipe to another value, or a key that is not known here; or muon is
            asked to work on pieces of matrices.
    """
    _check_muon(deepspeed, train, optimizer, source)
    owned = _recipe_keys(train, world_size)
    for key, value in deepspeed.items():
        if key in ("optimizer", "scheduler"):
            _check_optimizer(key, value, optimizer, source)
        elif key in owned or key in ("bf16", "fp16", "torch_autocast", "amp"):
            _check_agrees(key, value, owned.get(key, (False, "train.precision")), source)
        elif key not in JSON_KEYS:
            raise ValueError(
                f"{source}: unknown key {key!r}; expected only {sorted(JSON_KEYS)}. Batch sizes, learning rate, "
                "clipping and precision belong to the recipe."
            )
    merged = _without_auto({key: copy.deepcopy(value) for key, value in deepspeed.items() if key in JSON_KEYS})
    merged.update({key: value for key, (value, _) in owned.items()})
    # The optimiser is ours (a torch one or DeepSpeed's for the CPU), never built from the JSON.
    merged.update(zero_allow_untested_optimizer=True, zero_force_ds_cpu_optimizer=False)
    merged.setdefault("steps_per_print", None)
    return merged


def _recipe_keys(train: TrainConfig, world_size: int) -> dict[str, tuple[Any, str]]:
    """DeepSpeed key -> (value, recipe key)."""
    keys: dict[str, tuple[Any, str]] = {
        "train_batch_size": (train.global_batch_size, "train.global_batch_size"),
        "train_micro_batch_size_per_gpu": (train.micro_batch_size, "train.micro_batch_size"),
        "gradient_accumulation_steps": (
            train.accumulation(world_size),
            f"train.global_batch_size, train.micro_batch_size and {world_size} ranks",
        ),
        # DeepSpeed clips at 1.0 when the key is absent.
        "gradient_clipping": (train.gradient_clipping, "train.gradient_clipping"),
    }
    if train.precision == "bf16":
        keys["bf16"] = ({"enabled": True}, "train.precision")
    elif train.precision == "bf16_autocast":
        # No module may reduce in bf16: the two sides of a GAN must not drift with the number of ranks.
        autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        keys["torch_autocast"] = (autocast, "train.precision")
    return keys


def _check_agrees(key: str, value: Any, owner: tuple[Any, str], source: str) -> None:
    expected, recipe_key = owner
    if isinstance(value, dict):
        enabled = expected.get("enabled", False) if isinstance(expected, dict) else False
        if value.get("enabled", "auto") in ("auto", enabled):
            return
        value, expected = value["enabled"], enabled
        key = f"{key}.enabled"
    elif value in ("auto", expected):
        return
    raise ValueError(
        f"{source} sets {key}: {value!r}, but the recipe ({recipe_key}) makes it {expected!r}. The recipe owns this "
        f'key: write "auto" in the JSON or remove it, and change the recipe if {value!r} is what you want.'
    )


def _check_optimizer(key: str, value: Any, optimizer: OptimizerConfig | None, source: str) -> None:
    parameters = value.get("params", {}) if isinstance(value, dict) else {}
    expected = {} if optimizer is None or key == "scheduler" else _deepspeed_optimizer(optimizer)
    for name, given in parameters.items():
        wanted = expected.get(name)
        if given != "auto" and given != (list(wanted) if isinstance(wanted, tuple) else wanted):
            raise ValueError(
                f"{source} sets {key}.params.{name}: {given!r}, but the recipe (optimizer) makes it {wanted!r}. The "
                'recipe owns the optimiser and its schedule: write "auto" or remove the section.'
            )
    kind = value.get("type", "auto") if isinstance(value, dict) else value
    if kind != "auto" and (optimizer is None or key == "scheduler" or kind.lower() != optimizer.name):
        raise ValueError(
            f"{source} sets {key}.type: {kind!r}, but the recipe owns the {key}. Remove the section from the JSON."
        )


def _check_muon(deepspeed: dict[str, Any], train: TrainConfig, optimizer: OptimizerConfig | None, source: str) -> None:
    if optimizer is None or optimizer.name != "muon":
        return
    if zero_stage(deepspeed) > 0 or train.precision == "bf16":
        raise ValueError(
            f"optimizer.name is muon with ZeRO stage {zero_stage(deepspeed)} ({source}) and precision "
            f"{train.precision}; muon needs whole fp32 matrices: expected stage 0 and fp32 or bf16_autocast. Use "
            "deepspeed_configs/zero0.json, or --optimizer.name adamw with a smaller --optimizer.learning_rate."
        )


def _deepspeed_optimizer(optimizer: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": optimizer.learning_rate,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }


def _without_auto(value: Any) -> Any:
    """Drop keys that say "auto", so that DeepSpeed's own default holds."""
    if isinstance(value, dict):
        return {key: _without_auto(inner) for key, inner in value.items() if inner != "auto"}
    return value

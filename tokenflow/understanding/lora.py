"""Low-rank adapters (LoRA, arXiv 2106.09685): tuning a multimodal model whose language model stays as it is.

A linear layer W x becomes W x + alpha / rank * B A x, by the peft package. A [rank, inputs] starts random and
B [outputs, rank] at zero, so that the model starts as it was. Names, of the plain model and of the adapted one::

    language.layers.0.mlp.up_proj.weight    language.layers.0.mlp.up_proj.base_layer.weight
                                            language.layers.0.mlp.up_proj.lora_A.default.weight
                                            language.layers.0.mlp.up_proj.lora_B.default.weight
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tokenflow.language.lazy_tensors import LazyTensors
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.model import MultimodalModel

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Which layers of the language model get adapters, and of what size; LLaVA's numbers by default."""

    rank: int = 128
    """Rows of A and columns of B."""
    alpha: float = 256.0
    """What an adapter adds is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Share of an adapter's inputs that are dropped in training."""
    targets: tuple[Target, ...] = get_args(Target)
    """Linear layers, by the last part of their names; those of every transformer layer."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank is {self.rank}, alpha {self.alpha} and dropout {self.dropout}; expected 1 or more, a number "
                "above 0, and 0 to below 1."
            )
        known = get_args(Target)
        if not self.targets or len(set(self.targets)) < len(self.targets) or set(self.targets) - set(known):
            raise ValueError(f"targets are {self.targets}; expected some of {', '.join(known)}, each once.")

    @property
    def scale(self) -> float:
        """Factor of what an adapter adds."""
        return self.alpha / self.rank


def add_lora(model: MultimodalModel, options: LoraOptions) -> None:
    """Put adapters into a plain model; they and the projector are trainable, everything else is frozen.

    In a model that is built in parts (ZeRO-3's `sharded` construction) they begin empty: load `adapted_weights`.

    Raises:
        ValueError: The peft package is not installed, or the model has adapters.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f'LoRA needs the peft package, which cannot be imported ({error}): pip install "tokenflow[lora]", or '
            '".[lora]" in a checkout.'
        ) from error
    if any(name.endswith(_A) for name, _ in model.named_parameters()):
        raise ValueError("the model has adapters. Merge them into a plain model first: merge_lora.")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
        bias="none",
    )
    with warnings.catch_warnings():
        # peft draws A and B, also where they are already in parts.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        inject_adapter_in_model(config, model)
    model.projector.requires_grad_(True)


def plain_to_lora(name: str, options: LoraOptions) -> str:
    """What a weight of the plain model is called in the adapted one."""
    owner, _, own_name = name.rpartition(".")
    return f"{owner}{_BASE}{own_name}" if owner.rpartition(".")[2] in options.targets else name


def lora_to_plain(name: str) -> str | None:
    """The inverse of `plain_to_lora`; None for an adapter's weight."""
    return None if name.endswith((_A, _B)) else name.replace(_BASE, ".")


def adapted_weights(
    weights: Mapping[str, Tensor], config: UnderstandingConfig, options: LoraOptions, *, seed: int = 0
) -> LazyTensors:
    """First weights of an adapted model: those of a plain one, each read when asked for, and new adapters.

    Args:
        weights: Of the plain model, all of them.
        config: The model's.
        options: As given to `add_lora`.
        seed: With its name it decides an adapter's A, so that every rank draws the same.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MultimodalModel(config).state_dict().items()}
    readers = {plain_to_lora(name, options): partial(weights.__getitem__, name) for name in weights}
    for name, shape in shapes.items():
        owner = name.removesuffix(".weight")
        if owner.rpartition(".")[2] in options.targets:
            readers[owner + _A] = partial(_new_a, owner, options.rank, shape[1], seed=seed)
            readers[owner + _B] = partial(torch.zeros, shape[0], options.rank)
    return LazyTensors(readers)


def _new_a(owner: str, rank: int, inputs: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"lora {seed} {owner}".encode()))
    return nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator)


def merge_lora(state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], options: LoraOptions) -> dict[str, Tensor]:
    """The plain model's state of an adapted one's: W + alpha / rank * B A, computed in fp32, in W's dtype.

    Args:
        state: Whole tensors by name, such as `state_dict()` or a gathered one. It is not changed.
        options: Those the model was adapted with.

    Raises:
        ValueError: The state is not one of a model that was adapted so; it names what is missing or of another size.
    """
    tensors = dict(state)
    merged = {plain: value for name, value in tensors.items() if (plain := lora_to_plain(name)) is not None}
    owners = {name.partition(mark)[0] for name in tensors for mark in (_BASE, _A, _B) if mark in name}
    if not owners:
        raise ValueError("the state holds no adapters; expected one of a model after add_lora.")
    for owner in sorted(owners):
        base, a, b = (tensors.get(owner + end) for end in (f"{_BASE}weight", _A, _B))
        if base is None or a is None or b is None:
            raise ValueError(f"{owner} lacks its base layer, A or B; expected all three. Gather the whole state.")
        if a.shape != (options.rank, base.shape[1]) or b.shape != (base.shape[0], options.rank):
            raise ValueError(
                f"{owner}: A is {tuple(a.shape)} and B {tuple(b.shape)} beside {tuple(base.shape)}; expected rank "
                f"{options.rank}. Give the options of the training run."
            )
        merged[f"{owner}.weight"] = (base.float() + options.scale * (b.float() @ a.float())).to(base.dtype)
    return merged

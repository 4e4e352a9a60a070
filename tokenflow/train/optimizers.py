"""Which optimiser a recipe names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokenflow.train.muon import MuonWithAdamW, split_matrices
from tokenflow.train.schedule import OptimizerConfig


def make_optimizer(
    module: nn.Module, groups: list[dict[str, Any]], config: OptimizerConfig, *, offload: str | None
) -> torch.optim.Optimizer:
    """The optimiser over `groups` of the module's parameters; DeepSpeed's own where its states are offloaded."""
    if config.name == "muon":
        return MuonWithAdamW(
            *split_matrices(module, groups),
            learning_rate=config.learning_rate,
            matrix_learning_rate=config.matrix_learning_rate,
            momentum=config.momentum,
            newton_schulz_steps=config.newton_schulz_steps,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    constants = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if offload is not None:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=config.name == "adamw", **constants)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, fused=True, **constants)

"""Muon for the matrices of linear layers, AdamW for everything else, as one optimizer.

Muon takes the nearest orthogonal matrix of each momentum for its step (Newton-Schulz iteration, Jordan et al. 2024):
small generators learn as much from half the pictures. It needs whole matrices, so ZeRO must be off.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenflow.train import distributed


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW over one list of groups and one state, so that it is saved and scheduled as one."""

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        others: Sequence[dict[str, Any]],
        *,
        learning_rate: float,
        matrix_learning_rate: float,
        momentum: float,
        newton_schulz_steps: int,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """Take parameter groups of matrices and of everything else."""
        scale = matrix_learning_rate / learning_rate
        scaled = [{**group, "learning_rate_scale": scale * group.get("learning_rate_scale", 1.0)} for group in matrices]
        self._muon = _BatchedMuon(
            scaled,
            lr=matrix_learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            ns_steps=newton_schulz_steps,
        )
        self._adamw = torch.optim.AdamW(
            list(others), lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        self._count = len(scaled)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a checkpoint replaces groups and state, so both parts are handed the present ones.
        parts = ((self._muon, self.param_groups[: self._count]), (self._adamw, self.param_groups[self._count :]))
        for part, groups in parts:
            part.param_groups = groups
            part.state = self.state
            part.step()
        return loss


class _BatchedMuon(torch.optim.Muon):
    """torch's Muon, matrices of one shape orthogonalised together, and in fp32 on a CPU.

    torch iterates in bf16: without bf16 arithmetic of its own, a CPU took 0.6 s a step for nano's 28 matrices, three
    times as long as forward and backward; so it takes 0.03 s.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step; MuonWithAdamW has called the closure."""
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, group["momentum"])
                    update = update.T if _is_tall(parameter) else update
                    by_shape[tuple(update.shape)].append((parameter, update))
            for members in by_shape.values():
                parameters, updates = zip(*members, strict=True)
                found = _shared_out(
                    torch.stack(updates), steps=group["ns_steps"], coefficients=group["ns_coefficients"]
                )
                for parameter, update in zip(parameters, found, strict=True):
                    rows, columns = parameter.shape
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    rate = group["lr"] * math.sqrt(max(1, rows / columns))
                    parameter.add_(update.T if _is_tall(parameter) else update, alpha=-rate)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def _is_tall(parameter: Tensor) -> bool:
    return parameter.shape[0] > parameter.shape[1]


def _shared_out(matrices: Tensor, *, steps: int, coefficients: tuple[float, float, float]) -> Tensor:
    """`orthogonalised`, each rank doing its part: gradients, and so matrices, are the same on all of them."""
    ranks = distributed.world_size()
    if ranks == 1:
        return orthogonalised(matrices, steps=steps, coefficients=coefficients)
    size = -(-len(matrices) // ranks)
    start = distributed.rank() * size
    part = matrices.new_zeros(size, *matrices.shape[1:])
    own = matrices[start : start + size]
    part[: len(own)] = orthogonalised(own, steps=steps, coefficients=coefficients)
    parts = [torch.empty_like(part) for _ in range(ranks)]
    torch.distributed.all_gather(parts, part)
    return torch.cat(parts)[: len(matrices)]


def orthogonalised(matrices: Tensor, *, steps: int, coefficients: tuple[float, float, float]) -> Tensor:
    """Near the closest orthogonal matrix to each of [n, rows, columns], rows <= columns: Newton-Schulz iteration.

    bf16 on a GPU, fp32 on a CPU; fp32 comes back.
    """
    a, b, c = coefficients
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    # The spectral norm is at most 1 then.
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()


def split_matrices(
    module: nn.Module, groups: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of the weights of `nn.Linear` layers, and groups of the rest (embeddings, heads, norms, biases, kernels).

    Raises:
        ValueError: Nothing is left for one of the two.
    """
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    matrices, others = [], []
    for group in groups:
        for part, chosen in ((matrices, True), (others, False)):
            parameters = [p for p in group["params"] if (id(p) in weights) is chosen]
            if parameters:
                part.append({**group, "params": parameters})
    if not matrices or not others:
        raise ValueError(
            f"optimizer.name is muon and {type(module).__name__} has {len(matrices)} groups of linear layers' weights "
            f"and {len(others)} of other parameters; expected both. Use optimizer.name adamw."
        )
    return matrices, others

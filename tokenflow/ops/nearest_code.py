"""Nearest shared index over N codebooks, never holding tokens x codebook_size distances (paper 3.2, equation 2)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Backend = Literal["auto", "blocked", "dense"]

# Measured on two CPU cores (benchmarks/results.md): 4 MB of scores stay in cache, and larger blocks mean fewer barriers.
_CPU_ROWS, _CPU_SCORES, _CPU_MAX_COLUMNS = 1024, 1024 * 1024, 8192
# An accelerator wants few, large kernels: 64 MB of scores.
_ACCELERATOR_ROWS, _ACCELERATOR_COLUMNS = 4096, 4096


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """L2-normalise `x` along `dim` in fp32, whatever its dtype."""
    return F.normalize(x.float(), dim=dim)


@contextmanager
def full_precision_matmul() -> Iterator[None]:
    """Compute fp32 matmuls in fp32, also in a process that allows TF32 or bf16 kernels for them."""
    backends = [module.matmul for module in (torch.backends.cuda, torch.backends.mkldnn) if hasattr(module, "matmul")]
    backends = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    # torch < 2.9 has one setting for all backends; later versions refuse to read it once a backend's own was set.
    saved = [backend.fp32_precision for backend in backends] or torch.get_float32_matmul_precision()
    for backend in backends:
        backend.fp32_precision = "ieee"
    if not backends:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if not backends:
            torch.set_float32_matmul_precision(saved)
        for backend, precision in zip(backends, saved, strict=False):
            backend.fp32_precision = precision


def nearest_code(
    features: Sequence[Float[Tensor, "tokens _"]],
    codebooks: Sequence[Float[Tensor, "codes _"]],
    *,
    weights: Sequence[float],
    backend: Backend = "auto",
) -> Int[Tensor, "tokens"]:
    """Return for each token `argmin_k sum_i weights[i] * ||n(features[i]) - n(codebooks[i][k])||^2`, n l2-normalising.

    `features[i]` is [N, C_i] and `codebooks[i]` is [K, C_i]; they need not be normalised already, and any float dtype
    is read as fp32. The result is int64 [N], without gradient. Ties go to the lowest index, as with `torch.argmin`.
    Neither autocast nor the process' matmul precision changes it.

    Between unit vectors the distance is a constant minus twice a weighted sum of cosines: one matmul of the
    concatenated parts, each scaled by the root of its weight. `blocked` keeps a running maximum over blocks of the
    codebook. `dense` computes every distance and is the reference for tests. `auto` is `blocked`.

    Raises ValueError when the lists disagree in length or shape, or a weight is negative.
    """
    _check(features, codebooks, weights, backend)
    roots = [math.sqrt(weight) for weight in weights]
    with torch.no_grad(), torch.autocast(features[0].device.type, enabled=False), full_precision_matmul():
        if backend == "dense":
            return _search_dense(features, codebooks, weights)
        return _search_blocked(_packed(features, roots), codebooks, roots)


def _check(features: Sequence[Tensor], codebooks: Sequence[Tensor], weights: Sequence[float], backend: str) -> None:
    if not (len(features) == len(codebooks) == len(weights) > 0):
        raise ValueError(
            f"got {len(features)} features, {len(codebooks)} codebooks and {len(weights)} weights; expected the same "
            "number of each, at least one. Pass one feature and one weight for each codebook."
        )
    shapes = [
        (tuple(feature.shape), tuple(codebook.shape)) for feature, codebook in zip(features, codebooks, strict=True)
    ]
    if any(len(f) != 2 or len(e) != 2 or f[1] != e[1] for f, e in shapes):
        raise ValueError(f"(feature, codebook) shapes are {shapes}; expected [N, C_i] with [K, C_i]. Fix code_widths.")
    if len({f[0] for f, _ in shapes}) > 1 or len({e[0] for _, e in shapes}) > 1:
        raise ValueError(
            f"(feature, codebook) shapes are {shapes}; a shared index needs one N and one K. "
            "Give every codebook the same size."
        )
    if any(weight < 0 or not math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(
            f"weights are {list(weights)}; expected finite, none negative, not all zero. Fix distance_weights."
        )
    if backend not in ("auto", "blocked", "dense"):
        raise ValueError(f"backend is {backend!r}; expected 'auto', 'blocked' or 'dense'.")


def _packed(parts: Sequence[Tensor], roots: Sequence[float]) -> Tensor:
    return torch.cat([unit(part) * root for part, root in zip(parts, roots, strict=True)], dim=1)


def _search_dense(features: Sequence[Tensor], codebooks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    distances = features[0].new_zeros(len(features[0]), len(codebooks[0]), dtype=torch.float32)
    for feature, codebook, weight in zip(features, codebooks, weights, strict=True):
        distances += weight * (unit(feature)[:, None] - unit(codebook)[None]).square().sum(-1)
    return distances.argmin(1)


def _search_blocked(queries: Tensor, codebooks: Sequence[Tensor], roots: Sequence[float]) -> Tensor:
    on_cpu = queries.device.type == "cpu"
    num_tokens, codebook_size = len(queries), len(codebooks[0])
    rows = max(1, min(_CPU_ROWS if on_cpu else _ACCELERATOR_ROWS, num_tokens))
    columns = min(_CPU_SCORES // rows, _CPU_MAX_COLUMNS) if on_cpu else _ACCELERATOR_COLUMNS
    update = _update_few if on_cpu else _update_all
    best = queries.new_full((num_tokens,), -torch.inf)
    indices = torch.zeros(num_tokens, dtype=torch.int64, device=queries.device)
    buffer = queries.new_empty(rows * min(columns, codebook_size))
    for first in range(0, codebook_size, columns):
        table = _packed([codebook[first : first + columns] for codebook in codebooks], roots)
        for start in range(0, num_tokens, rows):
            block = queries[start : start + rows]
            scores = buffer[: len(block) * len(table)].view(len(block), len(table))
            torch.mm(block, table.T, out=scores)
            update(scores, first, best[start : start + rows], indices[start : start + rows])
    return indices


def _update_few(scores: Tensor, first: int, best: Tensor, indices: Tensor) -> None:
    # On a CPU amax is vectorised and argmax is not; a row improves in about ln(number of blocks) blocks only.
    maximum = scores.amax(1)
    improved = (maximum > best).nonzero().squeeze(1)
    if len(improved):
        best[improved] = maximum[improved]
        indices[improved] = scores[improved].argmax(1) + first


def _update_all(scores: Tensor, first: int, best: Tensor, indices: Tensor) -> None:
    # No `nonzero` here: it would make the host wait for the device once a block.
    position = scores.argmax(1, keepdim=True)
    maximum = scores.gather(1, position).squeeze(1)
    improved = maximum > best
    best.copy_(torch.where(improved, maximum, best))
    indices.copy_(torch.where(improved, position.squeeze(1) + first, indices))

"""Nearest shared index over N codebooks, without ever holding tokens x codebook_size distances (paper section 3.2, equation 2)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Backend = Literal["auto", "blocked", "dense"]

# Measured on two CPU cores (benchmarks/results.md): one block of scores fits the second-level cache. A GPU wants few, large kernels instead.
_CPU_ROWS, _CPU_SCORES, _CPU_MAX_COLUMNS = 1024, 1024 * 512, 8192
_ACCELERATOR_ROWS, _ACCELERATOR_COLUMNS = 4096, 4096


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """L2-normalise `x` along `dim` in fp32, whatever its dtype."""
    return F.normalize(x.float(), dim=dim)


@contextmanager
def full_precision_matmul() -> Iterator[None]:
    """Keep fp32 matmuls exact inside: a run that allows TF32 or bf16 kernels would flip about two indices in a hundred."""
    backends = (
        [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul] if hasattr(torch.backends.mkldnn, "matmul") else []
    )
    if backends and all(hasattr(backend, "fp32_precision") for backend in backends):
        saved = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, value in zip(backends, saved, strict=True):
                backend.fp32_precision = value
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def nearest_code(
    features: Sequence[Float[Tensor, "tokens _"]],
    codebooks: Sequence[Float[Tensor, "codes _"]],
    *,
    weights: Sequence[float],
    backend: Backend = "auto",
) -> Int[Tensor, "tokens"]:
    """Return, for each token, `argmin_k sum_i weights[i] * ||n(features[i]) - n(codebooks[i][k])||^2`, `n` being l2 normalisation.

    `features[i]` is [N, C_i], `codebooks[i]` is [K, C_i]; neither has to be normalised already, any float dtype is read as fp32.
    The result is int64 [N]. Ties go to the lowest index, as with `torch.argmin`; the result does not depend on autocast, on the
    matmul precision setting of the process, or on the order of tokens. Nothing here is differentiable: indices have no gradient.

    Both sides being unit vectors, the distance is a constant minus twice a weighted sum of cosines, which is one matmul of the
    concatenated parts, each scaled by the root of its weight. `blocked` keeps a running maximum over blocks of the codebook;
    `dense` is the plain reference, for tests and small sizes. `auto` is `blocked`.

    Raises ValueError when the lists disagree in length or shape, or a weight is negative.
    """
    _check(features, codebooks, weights, backend)
    roots = [math.sqrt(weight) for weight in weights]
    with torch.no_grad(), torch.autocast(features[0].device.type, enabled=False), full_precision_matmul():
        queries = _packed(features, roots)
        if backend == "dense":
            distances = torch.zeros(len(queries), len(codebooks[0]), device=queries.device)
            for feature, codebook, weight in zip(features, codebooks, weights, strict=True):
                difference = unit(feature)[:, None] - unit(codebook)[None]
                distances += weight * difference.square().sum(-1)
            return distances.argmin(1)
        return _search_blocked(queries, codebooks, roots)


def _check(features: Sequence[Tensor], codebooks: Sequence[Tensor], weights: Sequence[float], backend: str) -> None:
    if not (len(features) == len(codebooks) == len(weights) > 0):
        raise ValueError(
            f"got {len(features)} features, {len(codebooks)} codebooks, {len(weights)} weights; expected the same number, at least one. "
            "Pass one feature and one weight for each codebook."
        )
    if any(f.ndim != 2 or e.ndim != 2 or f.shape[1] != e.shape[1] for f, e in zip(features, codebooks, strict=True)):
        shapes = [(tuple(f.shape), tuple(e.shape)) for f, e in zip(features, codebooks, strict=True)]
        raise ValueError(f"got (feature, codebook) shapes {shapes}; expected [N, C_i] with [K, C_i]. Fix code_widths.")
    if len({len(f) for f in features}) > 1 or len({len(e) for e in codebooks}) > 1:
        raise ValueError(
            f"got {[len(f) for f in features]} tokens and {[len(e) for e in codebooks]} codes; a shared index needs one N and one K. "
            "Give every codebook the same size."
        )
    if any(weight < 0 or not math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(
            f"weights are {list(weights)}; expected finite, not negative, not all zero. Fix distance_weights."
        )
    if backend not in ("auto", "blocked", "dense"):
        raise ValueError(f"backend is {backend!r}; expected 'auto', 'blocked' or 'dense'.")


def _packed(parts: Sequence[Tensor], roots: Sequence[float]) -> Tensor:
    return torch.cat(
        [unit(part) * root if root != 1.0 else unit(part) for part, root in zip(parts, roots, strict=True)], dim=1
    )


def _search_blocked(queries: Tensor, codebooks: Sequence[Tensor], roots: Sequence[float]) -> Tensor:
    on_cpu = queries.device.type == "cpu"
    num_tokens, codebook_size = len(queries), len(codebooks[0])
    rows = min(_CPU_ROWS if on_cpu else _ACCELERATOR_ROWS, max(num_tokens, 1))
    columns = min(_CPU_SCORES // rows, _CPU_MAX_COLUMNS) if on_cpu else _ACCELERATOR_COLUMNS
    update = _update_sparse if on_cpu else _update_dense
    best = queries.new_full((num_tokens,), -torch.inf)
    indices = torch.zeros(num_tokens, dtype=torch.int64, device=queries.device)
    buffer = queries.new_empty(rows * min(columns, codebook_size))
    for first in range(0, codebook_size, columns):
        table = _packed([codebook[first : first + columns] for codebook in codebooks], roots).T
        for start in range(0, num_tokens, rows):
            span = slice(start, min(start + rows, num_tokens))
            block = buffer[: (span.stop - start) * table.shape[1]].view(span.stop - start, table.shape[1])
            scores = torch.mm(queries[span], table, out=block)
            update(scores, first, best[span], indices[span])
    return indices


def _update_sparse(scores: Tensor, first: int, best: Tensor, indices: Tensor) -> None:
    # amax is vectorised on a CPU and argmax is not; only about ln(number of blocks) blocks improve a row, so few rows need argmax.
    maximum = scores.amax(1)
    improved = (maximum > best).nonzero().squeeze(1)
    if len(improved):
        best[improved] = maximum[improved]
        indices[improved] = scores[improved].argmax(1) + first


def _update_dense(scores: Tensor, first: int, best: Tensor, indices: Tensor) -> None:
    # No `nonzero` here: it would make the host wait for the device once a block.
    position = scores.argmax(1, keepdim=True)
    maximum = scores.gather(1, position).squeeze(1)
    improved = maximum > best
    torch.where(improved, maximum, best, out=best)
    torch.where(improved, position.squeeze(1) + first, indices, out=indices)

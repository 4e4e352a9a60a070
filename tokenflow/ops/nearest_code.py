"""Nearest shared index over N codebooks, never holding tokens x codebook_size distances (paper 3.2, equation 2)."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Backend = Literal["auto", "blocked", "dense"]

# Measured on two CPU cores (benchmarks/results.md): a thread's block of scores, 2 MB, stays in cache.
_CPU_ROWS, _CPU_SCORES, _CPU_MAX_COLUMNS = 1024, 1024 * 512, 8192
# An accelerator wants few, large kernels: 64 MB of scores.
_ACCELERATOR_ROWS, _ACCELERATOR_COLUMNS = 4096, 4096

_thread_count_lock = threading.Lock()


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
    num_tokens, codebook_size = len(queries), len(codebooks[0])
    if queries.device.type != "cpu":
        span = (0, codebook_size, _ACCELERATOR_COLUMNS)
        return _search_span(queries, codebooks, roots, span, rows=_ACCELERATOR_ROWS, update=_update_all)[1]
    rows = max(1, min(_CPU_ROWS, num_tokens))
    columns = min(_CPU_SCORES // rows, _CPU_MAX_COLUMNS)

    def search(span: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # both are settings of a thread
            return _search_span(queries, codebooks, roots, span, rows=rows, update=_update_few)

    num_blocks = math.ceil(codebook_size / columns)
    with _one_thread_an_operation(enabled=num_blocks > 1) as num_threads:
        step = math.ceil(num_blocks / num_threads) * columns
        spans = [(first, min(first + step, codebook_size), columns) for first in range(0, codebook_size, step)]
        if len(spans) == 1:
            return search(spans[0])[1]
        with ThreadPoolExecutor(len(spans)) as pool:
            best, indices = zip(*pool.map(search, spans), strict=True)
    # Spans come in order and argmax takes the first of equals: the lowest index wins here too.
    span = torch.stack(best).argmax(0, keepdim=True)
    return torch.stack(indices).gather(0, span).squeeze(0)


@contextmanager
def _one_thread_an_operation(*, enabled: bool) -> Iterator[int]:
    """Make torch run each operation in its calling thread, and give the number of threads that it had.

    Each thread then searches its own part of the codebook, and they meet once. Left to itself torch splits every small
    operation, and its threads wait for each other after each: 20 times slower as soon as another process wants a core.
    """
    if not enabled:
        yield 1
        return
    with _thread_count_lock:  # the setting is the process'
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield num_threads
        finally:
            torch.set_num_threads(num_threads)


def _search_span(
    queries: Tensor,
    codebooks: Sequence[Tensor],
    roots: Sequence[float],
    span: tuple[int, int, int],
    *,
    rows: int,
    update: Callable[[Tensor, int, Tensor, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Best score and its index [N] among the codes of `span`: first, end, block."""
    start, end, columns = span
    best = queries.new_full((len(queries),), -torch.inf)
    indices = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    buffer = queries.new_empty(min(rows, len(queries)) * min(columns, end - start))
    for first in range(start, end, columns):
        table = _packed([codebook[first : min(first + columns, end)] for codebook in codebooks], roots)
        for row in range(0, len(queries), rows):
            block = queries[row : row + rows]
            scores = buffer[: len(block) * len(table)].view(len(block), len(table))
            torch.mm(block, table.T, out=scores)
            update(scores, first, best[row : row + rows], indices[row : row + rows])
    return best, indices


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

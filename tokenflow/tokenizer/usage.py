"""Codebook usage and perplexity over a sliding window of images, per scale and in all, with a dead-code alarm."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor


class CodebookUsage:
    """Counts which codes the newest images used.

    The counts are int64 and exact for any codebook size. Over several ranks, `all_reduce` sums them: pass
    `window / world_size` on each rank and the figures are those of one process that saw all the images.
    """

    def __init__(
        self,
        codebook_size: int,
        *,
        scales: Sequence[int],
        window: int,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Make an empty window.

        Args:
            codebook_size: number of codes K.
            scales: side of each scale's grid, as in the codes [B, L].
            window: images of this rank to look back on; older ones are forgotten one by one.
            all_reduce: returns the sum of an int64 tensor over all ranks; None for one rank. `compute` calls it once,
                so every rank must call `compute` equally often.
        """
        if codebook_size < 1 or window < 1 or not scales or min(scales) < 1:
            raise ValueError(
                f"codebook_size is {codebook_size}, window {window}, scales {tuple(scales)}; expected all at least 1."
            )
        self.codebook_size = codebook_size
        self.scales = tuple(scales)
        self.window = window
        self.all_reduce = all_reduce
        self._lengths = [scale**2 for scale in self.scales]
        self._images: deque[Tensor] = deque()
        self._num_images = 0
        self._counts = torch.zeros(len(self.scales), codebook_size, dtype=torch.int64)

    def update(self, indices: Int[Tensor, "B L"]) -> None:
        """Add the codes [B, L] of B images. Negative codes (a dropped scale) are not counted.

        Everything stays on the device of `indices`; nothing waits for it. Raises ValueError for another length.
        """
        if indices.ndim != 2 or indices.shape[1] != sum(self._lengths):
            raise ValueError(
                f"indices are {tuple(indices.shape)}; expected [B, {sum(self._lengths)}] for the scales {self.scales}."
            )
        if self._counts.device != indices.device:
            self._counts = self._counts.to(indices.device)
            self._images = deque(images.to(indices.device) for images in self._images)
        newest = indices.detach()[-self.window :].to(torch.int32, copy=True)
        self._images.append(newest)
        self._num_images += len(newest)
        self._count(newest, +1)
        while self._num_images > self.window:
            oldest = self._images.popleft()
            excess = self._num_images - self.window
            self._count(oldest[:excess], -1)
            if excess < len(oldest):
                self._images.appendleft(oldest[excess:])
            self._num_images -= min(excess, len(oldest))

    def _count(self, images: Tensor, sign: int) -> None:
        for counts, codes in zip(self._counts, images.split(self._lengths, dim=1), strict=True):
            codes = codes.flatten().long()
            counts.scatter_add_(0, codes.clamp_min(0), (codes >= 0).long() * sign)

    def compute(self) -> dict[str, float]:
        """Return the figures over all ranks.

        `usage` (share of codes used, 0..1), `perplexity` (exp of the entropy of code frequencies, 1..K), `dead_codes`
        (codes not used), `tokens` (codes counted); and `usage/scale_S`, `perplexity/scale_S` for a grid of S x S.
        """
        counts = self._counts.clone()
        if self.all_reduce is not None:
            counts = self.all_reduce(counts)
        total = counts.sum(0)
        used = int((total > 0).sum())
        figures = {
            "usage": used / self.codebook_size,
            "perplexity": _perplexity(total),
            "dead_codes": float(self.codebook_size - used),
            "tokens": float(total.sum()),
        }
        for scale, row in zip(self.scales, counts, strict=True):
            figures[f"usage/scale_{scale}"] = int((row > 0).sum()) / self.codebook_size
            figures[f"perplexity/scale_{scale}"] = _perplexity(row)
        return figures

    def alarm(self, figures: Mapping[str, float], *, threshold: float = 0.5) -> str | None:
        """Return a warning when too many codes are dead in `figures` (from `compute`), else None.

        The measure is usage over what evenly drawn codes would show with as many tokens, so that a short window does
        not raise it. `threshold` is a share of that, 0..1.
        """
        tokens = figures["tokens"]
        if not tokens:
            return None
        reachable = 1 - (1 - 1 / self.codebook_size) ** tokens
        if figures["usage"] >= threshold * reachable:
            return None
        return (
            f"codebook is collapsing: {figures['dead_codes']:.0f} of {self.codebook_size} codes were not used by the "
            f"last {tokens:.0f} tokens (usage {figures['usage']:.3f}, evenly used codes would show {reachable:.3f}; "
            f"perplexity {figures['perplexity']:.1f}). Lower the learning rate, warm up longer, raise "
            "commitment_weight or entropy_weight, or use a smaller codebook_size. With few or like pictures it is "
            "no fault: those need no more codes."
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return this rank's window: `images`, int32 [n, L] on the CPU, oldest first."""
        if not self._images:
            return {"images": torch.empty(0, sum(self._lengths), dtype=torch.int32)}
        return {"images": torch.cat(list(self._images)).cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a window saved by `state_dict`; a longer one is cut to its newest images."""
        self._images.clear()
        self._num_images = 0
        self._counts.zero_()
        if len(state["images"]):
            self.update(state["images"])


def _perplexity(counts: Tensor) -> float:
    frequencies = counts.double() / counts.sum().clamp_min(1)
    return float(torch.special.entr(frequencies).sum().exp())

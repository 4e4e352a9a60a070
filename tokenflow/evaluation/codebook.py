"""Which codes a tokenizer uses on an evaluation set: usage and perplexity, in all and at each scale.

The training-time sliding window is `tokenflow.tokenizer.usage`; here every code of the set counts once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenflow.evaluation.measure import AllReduce, reduced


class CodeHistogram:
    """Counts of codes int64 [B, L] (scales concatenated, as `tokenizer.encode` gives them), exact for any split."""

    def __init__(self, codebook_size: int, scales: Sequence[int]) -> None:
        self.codebook_size = codebook_size
        self.scales = tuple(scales)
        self.counts = torch.zeros(len(self.scales), codebook_size, dtype=torch.int64)

    @torch.no_grad()
    def update(self, codes: Tensor, valid: Tensor | None = None) -> None:
        """Add codes; `valid` bool [B] is False for the padding of a last batch."""
        lengths = [scale * scale for scale in self.scales]
        if codes.ndim != 2 or codes.shape[1] != sum(lengths):
            raise ValueError(
                f"codes are {tuple(codes.shape)}, expected [images, {sum(lengths)}] for scales {self.scales}"
            )
        codes = codes.detach().cpu()
        if valid is not None:
            codes = codes[valid.cpu().to(torch.bool)]
        for row, part in zip(self.counts, codes.split(lengths, dim=1), strict=True):
            row += torch.bincount(part.flatten(), minlength=self.codebook_size)

    def histogram(self, all_reduce: AllReduce | None = None) -> Tensor:
        """Counts int64 [scales, codebook_size] over all ranks."""
        return reduced(self.counts, all_reduce)

    def compute(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """`usage` (share of codes seen) and `perplexity` (exp of the entropy), plain and with `/scale_S` for each S.

        A small scale has few tokens: S*S*images bounds what it can use.
        """
        counts = self.histogram(all_reduce)
        rows = {"": counts.sum(0)} | {f"/scale_{scale}": row for scale, row in zip(self.scales, counts, strict=True)}
        metrics = {f"usage{name}": float((row > 0).double().mean()) for name, row in rows.items()}
        return metrics | {f"perplexity{name}": perplexity(row) for name, row in rows.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, for an evaluation that is to be continued."""
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        if state["counts"].shape != self.counts.shape:
            raise ValueError(
                f"saved counts are {tuple(state['counts'].shape)}, expected {tuple(self.counts.shape)}; "
                "continue with the same tokenizer"
            )
        self.counts = state["counts"].clone()


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of a histogram: the number of equally used codes that would be as diverse; 0 for no counts."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    share = counts[counts > 0].double() / total
    return float(torch.exp(-(share * share.log()).sum()))

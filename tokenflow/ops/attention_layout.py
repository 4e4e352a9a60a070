"""Who may attend to whom, as a description: causal text, an image that is block-causal by scale, a causal tail.

Every position sees one interval of positions of its row, so `intervals` says it all and no backend but the dense
reference ever needs an L x L mask (paper, section 3.3; the mask of next-scale prediction).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One sample of a row: causal text, an image scale by scale, a causal tail, without gaps.

    In the text-to-image sequence the position of the *last text token* is image position 0 (it predicts scale 1), so
    `text` is the number of text tokens less one there.
    """

    start: int
    """Position of its first token in the row."""
    text: int
    """Causal positions before the image."""
    scales: tuple[int, ...] = ()
    """Sides of the image's scales; scale s is s*s positions that see the text, every scale before and all of s."""
    tail: int = 0
    """Causal positions after the image; they see everything before them in the sample."""

    def __post_init__(self) -> None:
        if self.start < 0 or self.text < 0 or self.tail < 0 or any(scale < 1 for scale in self.scales):
            raise ValueError(f"start, text and tail must be 0 or more and scales 1 or more; got {self}.")
        if self.end == self.start:
            raise ValueError(f"a sample needs at least one position; got {self}. Leave it out of its row.")

    @property
    def image_start(self) -> int:
        """First position of the image, or of the tail when there is no image."""
        return self.start + self.text

    @property
    def scale_ends(self) -> tuple[int, ...]:
        """Position after the last one of each scale."""
        ends, end = [], self.image_start
        for scale in self.scales:
            end += scale * scale
            ends.append(end)
        return tuple(ends)

    @property
    def tail_start(self) -> int:
        """First position of the tail."""
        return self.scale_ends[-1] if self.scales else self.image_start

    @property
    def end(self) -> int:
        """Position after the sample's last one."""
        return self.tail_start + self.tail


@dataclass(frozen=True)
class AttentionLayout:
    """The samples of every row of a batch. Positions in no sample are padding: their output is finite and meaningless.

    What a backend derives from it (indices, small masks) is kept inside, a device each: make one layout a batch and
    give it to every layer.
    """

    rows: tuple[tuple[Sample, ...], ...]
    """For each row its samples, in order, not overlapping."""
    length: int
    """Positions of a row, padding included."""
    _derived: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a layout needs at least one row; got none.")
        for number, row in enumerate(self.rows):
            end = 0
            for sample in row:
                if sample.start < end:
                    raise ValueError(f"row {number}: {sample} starts before position {end}, where the last one ends.")
                end = sample.end
            if end > self.length:
                raise ValueError(f"row {number} needs {end} positions; the layout's length is {self.length}.")

    @classmethod
    def causal(cls, batch: int, length: int) -> AttentionLayout:
        """Rows of plain causal text without padding."""
        return cls.uniform(batch, length, Sample(0, length))

    @classmethod
    def uniform(cls, batch: int, length: int, sample: Sample) -> AttentionLayout:
        """The same single sample in every row."""
        return cls(((sample,),) * batch, length)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def derived(self, name: str, device: torch.device, build: Callable[[], T]) -> T:
        """`build()`, computed at the first call for this name and device."""
        key = (name, device)
        if key not in self._derived:
            self._derived[key] = build()
        return self._derived[key]

    def intervals(self, device: torch.device | str) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """First position that each position sees, and the one after the last; padding sees itself alone."""
        device = torch.device(device)
        return self.derived("intervals", device, lambda: tuple(t.to(device) for t in self._build_intervals()))

    def _build_intervals(self) -> tuple[Tensor, Tensor]:
        known: dict[tuple[Sample, ...], tuple[Tensor, Tensor]] = {}
        for row in self.rows:
            if row in known:
                continue
            begin = torch.arange(self.length)
            end = begin + 1
            for sample in row:
                begin[sample.start : sample.end] = sample.start
                previous = sample.image_start
                for scale_end in sample.scale_ends:
                    end[previous:scale_end] = scale_end
                    previous = scale_end
            known[row] = (begin, end)
        begins, ends = zip(*(known[row] for row in self.rows), strict=True)
        return torch.stack(begins), torch.stack(ends)

    def dense_mask(self, device: torch.device | str) -> Bool[Tensor, "B 1 L L"]:
        """True where a query (row) may see a key (column); for the reference and for tests only."""
        begin, end = self.intervals(device)
        keys = torch.arange(self.length, device=device)
        return ((keys >= begin[..., None]) & (keys < end[..., None]))[:, None]

    def is_token(self, device: torch.device | str) -> Bool[Tensor, "B L"]:
        """True at positions of samples, False at padding."""
        mask = torch.zeros(self.batch, self.length, dtype=torch.bool)
        for number, row in enumerate(self.rows):
            for sample in row:
                mask[number, sample.start : sample.end] = True
        return mask.to(device)

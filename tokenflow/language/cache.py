"""A static key/value cache: allocated once, filled front to back, the same slots for all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenflow.language.config import LanguageConfig


class KeyValueCache:
    """Keys and values of every layer, `data` [layers, 2, B, G, max_length, D], the first `length` slots in use.

    Texts of different length are right-padded into the same slots; what follows them starts at one common slot for all
    rows, and the slots between are hidden by `key_mask`.
    """

    def __init__(
        self,
        config: LanguageConfig,
        *,
        batch: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the cache, filled with zeros.

        Args:
            config: Of the transformer.
            batch: Rows B; with guidance, conditional and unconditional ones together.
            max_length: Slots a row: the longest text and everything that is appended.
            device: Of the transformer.
            dtype: Of the keys and values, the one the transformer computes in.
        """
        shape = (config.depth, 2, batch, config.kv_heads, max_length, config.head_width)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self._texts: tuple[int, ...] = ()
        self._text_slots = 0
        self._hidden: Tensor | None = None

    @property
    def batch(self) -> int:
        """Rows."""
        return self.data.shape[2]

    @property
    def max_length(self) -> int:
        """Slots a row."""
        return self.data.shape[4]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions in use of each row, hidden slots not counted."""
        appended = self.length - self._text_slots
        return tuple(text + appended for text in self._texts) if self._texts else (self.length,) * self.batch

    def bytes(self) -> int:
        """Memory of the keys and values."""
        return self.data.numel() * self.data.element_size()

    def clear(self) -> None:
        """Forget everything and keep the memory."""
        self.length, self._texts, self._text_slots, self._hidden = 0, (), 0, None

    def begin(self, lengths: Sequence[int], slots: int) -> None:
        """Take texts of these lengths, right-padded to `slots`, as the first content."""
        if self.length:
            raise ValueError(f"the cache already holds {self.length} positions; expected an empty one. Call clear().")
        if len(lengths) != self.batch or min(lengths) < 0 or max(lengths) > slots:
            raise ValueError(
                f"lengths are {list(lengths)}; expected {self.batch} of them (the cache's batch), each 0 to {slots}."
            )
        self.check_room(0, slots)
        self.length = self._text_slots = slots
        self._texts = tuple(lengths)
        if min(lengths) < slots:
            slot = torch.arange(self.max_length)
            texts = torch.tensor(self._texts)[:, None]
            self._hidden = ((slot >= texts) & (slot < slots)).to(self.data.device)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions of every row."""
        if not self._text_slots <= length <= self.length:
            raise ValueError(f"length is {length}; expected {self._text_slots} to {self.length}, what was appended.")
        self.length = length

    def check_room(self, first: int, count: int) -> None:
        """Raise ValueError unless slots first to first + count exist."""
        if first + count > self.max_length:
            raise ValueError(
                f"{first} positions and {count} more do not fit a cache of {self.max_length}. Raise its max_length."
            )

    def key_mask(self, length: int) -> Tensor | None:
        """True at the first `length` slots that hold a token, [B, 1, 1, length]; None where all do."""
        return None if self._hidden is None else ~self._hidden[:, None, None, :length]

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [B, G, max_length, D] each, to be read and written in place."""
        return self.data[number, 0], self.data[number, 1]

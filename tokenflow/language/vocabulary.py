"""Extending a text vocabulary by `[PAD]` and K visual tokens (paper, section 3.3), and the tables that hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

NewRows = Literal["mean", "random"]


@dataclass(frozen=True, kw_only=True)
class VisualVocabulary:
    """Ids: text, then `[PAD]`, then one for every code."""

    text_size: int
    """Ids of the text tokenizer."""
    codebook_size: int
    """Codes K of the image tokenizer."""

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.codebook_size < 1:
            raise ValueError(
                f"text_size and codebook_size must be 1 or more; got {self.text_size} and {self.codebook_size}."
            )

    @property
    def pad_token(self) -> int:
        """Id of `[PAD]`."""
        return self.text_size

    @property
    def image_token_start(self) -> int:
        """Id of code 0."""
        return self.text_size + 1

    @property
    def image_token_end(self) -> int:
        """Id of the last code."""
        return self.text_size + self.codebook_size

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.text_size + 1 + self.codebook_size


def extend_rows(
    table: Float[Tensor, "V W"], *, rows: int, initialisation: NewRows = "mean", seed: int = 0
) -> Float[Tensor, "N W"]:
    """A table of `rows` rows that begins with `table`: an embedding table or a head for a larger vocabulary.

    Args:
        table: Rows of the known tokens.
        rows: Rows wanted, at least as many.
        initialisation: `mean`: each new row is the mean of the known ones, so that at first no new token is likelier
            than an average one; `random`: normal around zero with the known rows' standard deviation.
        seed: Of the random rows.

    Raises:
        ValueError: Fewer rows than there are, or an unknown initialisation.
    """
    new = rows - len(table)
    if new < 0:
        raise ValueError(f"the table has {len(table)} rows; expected at most {rows}. Is it extended already?")
    if initialisation not in get_args(NewRows):
        raise ValueError(f"initialisation is {initialisation!r}; expected one of {', '.join(get_args(NewRows))}.")
    known = table.float()
    if initialisation == "mean":
        added = known.mean(0).expand(new, -1)
    else:
        generator = torch.Generator().manual_seed(seed)
        added = torch.randn(new, table.shape[1], generator=generator).to(table.device) * known.std()
    return torch.cat([table, added.to(table.dtype)])

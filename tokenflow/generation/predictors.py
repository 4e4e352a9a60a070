"""Hidden states scale by scale: with the key/value cache, and without it as a reference.

Legend: B images, R rows of the transformer (B, or 2B with guidance: conditional first), n codes of a scale, C code
channels, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflow.generation.model import Generator
from tokenflow.generation.sampling import Keep
from tokenflow.generation.text_field import TextTokens
from tokenflow.language.cache import KeyValueCache

Compile = Literal["none", "step"]
Extent = Literal["full", "prefix"]


class CachedPredictor:
    """Each position is computed once, refinement steps apart. The negative prompt is computed once for all images."""

    def __init__(
        self,
        generator: Generator,
        text: TextTokens,
        negative: TextTokens | None,
        *,
        compile: Compile = "none",
    ) -> None:
        """Read the texts. `negative` is one row, or None without guidance; `compile` is for the steps."""
        self._generator = generator
        self._step: Callable[..., Tensor] = generator.language.step
        if compile == "step":
            self._step = torch.compile(generator.language.step, dynamic=True)
        batch = len(text.lengths)
        copies = torch.arange(batch)
        if negative is not None:
            text = with_negative(text, negative)
            copies = torch.cat([copies, torch.full((batch,), batch)])
        device = generator.feature_levels.device
        self._copies = copies.to(device)
        text = text.to(device)
        columns = text.ids.shape[1]
        self._start = generator.start_embedding(text.ids[:, -1])
        image = generator.positions(
            columns, text.lengths, length=columns + generator.config.num_codes - 1, device=device
        )
        self._positions = image[self._copies, columns - 1 :]
        self._cache = self._prefill(text)

    def first(self) -> Float[Tensor, "R 1 W"]:
        """At the last text token."""
        return self._step(self._start[self._copies], cache=self._cache, positions=self._positions[:, :1], keep="append")

    def scale(self, index: int, features: Float[Tensor, "B n C"], *, keep: Keep) -> Float[Tensor, "R n W"]:
        """At scale `index`, the one after those appended, or the newest of them to refine it."""
        begin, end = self._generator.config.scale_starts[index : index + 2]
        embedded = self._generator.embed_features(features, first=begin - 1)
        # Conditional and unconditional rows read the same image.
        embedded = embedded.repeat(len(self._copies) // len(features), 1, 1)
        return self._step(embedded, cache=self._cache, positions=self._positions[:, begin:end], keep=keep)

    def _prefill(self, text: TextTokens) -> KeyValueCache:
        """Keys and values of all text but its last token, without padding on the left, one row a distinct text."""
        generator, slots = self._generator, max(text.lengths) - 1
        lengths = [length - 1 for length in text.lengths]
        dtype, device = generator.head.weight.dtype, text.ids.device
        language = generator.config.language
        cache = KeyValueCache(
            language,
            batch=len(self._copies),
            max_length=slots + generator.config.num_codes,
            device=device,
            dtype=dtype,
        )
        if not slots:
            return cache
        read = KeyValueCache(language, batch=len(lengths), max_length=slots, device=device, dtype=dtype)
        columns = text.ids.shape[1]
        begins = torch.tensor([columns - length for length in text.lengths], device=device)
        # Texts are moved to the start of their rows; what stands behind them is hidden.
        index = (begins[:, None] + torch.arange(slots, device=device)).clamp(max=columns - 1)
        positions = generator.positions(columns, text.lengths, length=columns, device=device)
        generator.language.prefill(
            generator.embed_text(text.ids.gather(1, index)),
            lengths=lengths,
            cache=read,
            positions=positions.gather(1, index),
        )
        cache.begin([lengths[copy] for copy in self._copies.tolist()], slots)
        cache.data[..., :slots, :] = read.data[:, :, self._copies]
        return cache


class UncachedPredictor:
    """Everything computed anew at each step: the reference of the cached one, and what it is measured against.

    `full` computes all positions of the image at each step, `prefix` those up to the current scale.
    """

    def __init__(
        self, generator: Generator, text: TextTokens, negative: TextTokens | None, *, extent: Extent = "prefix"
    ) -> None:
        self._generator, self._extent = generator, extent
        batch = len(text.lengths)
        rows = list(range(batch))
        if negative is not None:
            text = with_negative(text, negative)
            rows += [batch] * batch
        text = text.to(generator.feature_levels.device)
        self._text = TextTokens(text.ids[rows], tuple(text.lengths[row] for row in rows))
        self._repeats = len(rows) // batch
        self._known = torch.zeros(batch, 0, generator.config.code_width, device=text.ids.device)

    def first(self) -> Float[Tensor, "R 1 W"]:
        """At the last text token."""
        return self._hidden(self._known, count=1)

    def scale(self, index: int, features: Float[Tensor, "B n C"], *, keep: Keep) -> Float[Tensor, "R n W"]:
        """At scale `index`; the inputs of earlier scales are those that were appended."""
        begin = self._generator.config.scale_starts[index] - 1
        inputs = torch.cat([self._known[:, :begin], features], dim=1)
        if keep == "append":
            self._known = inputs
        return self._hidden(inputs, count=features.shape[1])

    def _hidden(self, inputs: Tensor, *, count: int) -> Tensor:
        end = self._text.ids.shape[1] + inputs.shape[1]
        if self._extent == "full":
            missing = self._generator.config.num_codes - 1 - inputs.shape[1]
            inputs = torch.nn.functional.pad(inputs, (0, 0, 0, missing))
        features = inputs.repeat(self._repeats, 1, 1)
        hidden = self._generator.hidden(self._text.ids, features, text_lengths=self._text.lengths)
        return hidden[:, end - count : end]


def with_negative(text: TextTokens, negative: TextTokens) -> TextTokens:
    """Rows of the prompts, then the negative prompt's one row, aligned at their right ends."""
    assert len(negative.lengths) == 1, "one negative prompt serves the batch"
    columns = max(text.ids.shape[1], negative.ids.shape[1])
    rows = [torch.nn.functional.pad(part.ids, (columns - part.ids.shape[1], 0)) for part in (text, negative)]
    return TextTokens(torch.cat(rows), text.lengths + negative.lengths)

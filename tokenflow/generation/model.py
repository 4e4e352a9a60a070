"""Text to codes by next-scale prediction (paper section 3.3).

Sequence of one row, legend: T text tokens (boundary tokens included), L codes of an image, S scales, W width::

    position    0 ... T-2      T-1             T ... T+L-2             T+L-1          ...
    input       text           last text       features 0 ... L-2      placeholder    closing text
    predicts    -              code 0          codes 1 ... L-1         closing text   closing text

A feature is what the codes of the coarser scales say about its place (`tokenizer.scale_inputs`). The text is causal,
a scale sees the text and every scale up to and including itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.head import Head
from tokenflow.language.transformer import CausalTransformer, Projection, TokenEmbedding
from tokenflow.ops.attention_layout import AttentionLayout, Sample


class GeneratorOutput(NamedTuple):
    """One training forward; a tuple, because ZeRO-3's hooks find tensors in tuples."""

    loss: Float[Tensor, ""]
    """Mean cross-entropy over the image tokens, and the closing text where the configuration has one, weighted by
    `scale_weights`; fp32."""
    accuracy: Float[Tensor, ""]
    """Share of codes whose logit is the highest; no gradient."""
    scale_losses: Float[Tensor, "S"]
    """Mean cross-entropy of each scale; no gradient."""
    scale_accuracies: Float[Tensor, "S"]
    """Share of right codes of each scale; no gradient."""


class Generator(nn.Module):
    """A causal transformer with what it needs to read and to predict images.

    Built with random weights; `backbone_weights` brings a language model's. Under ZeRO-3 every parameter is read in the
    forward of the module that owns it.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.language.width
        self.language = CausalTransformer(config.language)
        deviation = config.language.embedding_deviation
        # Features are about two unit vectors long, and GELU lets two thirds of a normal input's size through: what
        # leaves the projector begins as strong as an embedding.
        self.projector = nn.Sequential(
            Projection(config.code_width, width, bias=True, deviation=0.7),
            nn.GELU(),
            Projection(width, width, bias=True, deviation=1.5 * deviation / width**0.5),
        )
        # Row 0 is text; row i+1 is scale i, of the inputs of scale i (row 1 is never used, as in the authors').
        self.scale_embedding = TokenEmbedding(len(config.scales) + 1, width, deviation=deviation)
        self.image_positions = TokenEmbedding(config.num_codes, width, deviation=deviation)
        codes_only = config.head_rows == "codes"
        self.head = Head(
            rows=config.codebook_size if codes_only else config.vocabulary_size,
            width=width,
            first_code=0 if codes_only else config.image_token_start,
            codebook_size=config.codebook_size,
            loss_over=config.loss_over,
        )
        # On a named device: a model that is built on `meta` keeps its constants.
        levels = [i + 1 for i, scale in enumerate(config.scales) for _ in range(scale**2)][1:]
        self.register_buffer("feature_levels", torch.tensor(levels, device="cpu", dtype=torch.int64), persistent=False)

    def forward(
        self,
        text: Int[Tensor, "B T"],
        codes: Int[Tensor, "B L"],
        features: Float[Tensor, "B rows C"],
        *,
        text_lengths: Sequence[int] | None = None,
        scale_weights: Sequence[float] = (),
    ) -> GeneratorOutput:
        """The training loss of images `codes` with their `features` (`tokenizer.scale_inputs(codes)`, L - 1 rows).

        `text` ends with the opening tokens and is padded on the left with `pad_token`; a class prompt is one token.
        `text_lengths` are the tokens that count in each row; without them those that are not `pad_token` count (a
        class prompt: one). `scale_weights` are what a token of each scale counts in the loss, closing text counting 1;
        none: all the same. Raises ValueError for codes or features that do not fit the configuration.
        """
        self._check(text, codes, features)
        lengths = self.text_lengths(text) if text_lengths is None else list(text_lengths)
        close = torch.tensor(self.config.image_close, device=codes.device, dtype=codes.dtype)
        hidden = self.hidden(text, features, text_lengths=lengths, closing=len(close))
        start = self.head.first_code
        targets = torch.cat([codes + start, close.expand(len(codes), -1)], dim=1)
        losses, correct = self.head(hidden[:, text.shape[1] - 1 :], targets)
        losses, correct = losses.view(targets.shape), correct.view(targets.shape).float()
        sizes = [scale**2 for scale in self.config.scales]
        image_losses = losses[:, : codes.shape[1]].detach().split(sizes, dim=1)
        image_correct = correct[:, : codes.shape[1]]
        return GeneratorOutput(
            _weighted_mean(losses, scale_weights, sizes=sizes) if scale_weights else losses.mean(),
            image_correct.mean(),
            torch.stack([part.mean() for part in image_losses]),
            torch.stack([part.mean() for part in image_correct.split(sizes, dim=1)]),
        )

    def hidden(
        self,
        text: Int[Tensor, "B T"],
        features: Float[Tensor, "B rows C"],
        *,
        text_lengths: Sequence[int],
        closing: int = 0,
    ) -> Float[Tensor, "B N W"]:
        """Hidden states of text, `features` (any number of whole scales) and `closing` tokens after a whole image."""
        batch, text_columns = text.shape
        embeddings = [self.embed_text(text), self.embed_features(features)]
        embeddings[0] = torch.cat(
            [embeddings[0][:, :-1], embeddings[0][:, -1:] + self._image_position(slice(0, 1))], dim=1
        )
        if closing:
            embeddings.append(self._embed_closing(batch, closing))
        samples = tuple(
            (Sample(start=text_columns - n, text=n - 1, scales=self._scales_of(features), tail=closing),)
            for n in text_lengths
        )
        embedded = torch.cat(embeddings, dim=1)
        layout = AttentionLayout(rows=samples, length=embedded.shape[1])
        positions = self.positions(text_columns, text_lengths, length=embedded.shape[1], device=text.device)
        return self.language(embedded, layout=layout, positions=positions)

    def embed_text(self, text: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """Token and scale embeddings of text; the last token's image position is not part of it."""
        return self.language.embed_tokens(text) + self.scale_embedding(torch.zeros_like(text))

    def embed_features(self, features: Float[Tensor, "B rows C"], *, first: int = 0) -> Float[Tensor, "B rows W"]:
        """Inputs for the codes `first` + 1 onwards: projected features, with embeddings of scale and position."""
        rows = slice(first, first + features.shape[1])
        projected = self.projector(features.to(self.head.weight.dtype))
        positions = self._image_position(slice(rows.start + 1, rows.stop + 1))
        return projected + self.scale_embedding(self.feature_levels[rows]) + positions

    def start_embedding(self, text: Int[Tensor, "B"]) -> Float[Tensor, "B 1 W"]:
        """The input that predicts code 0: the last text token, at image position 0."""
        return self.embed_text(text[:, None]) + self._image_position(slice(0, 1))

    def positions(
        self, text_columns: int, text_lengths: Sequence[int], *, length: int, device: torch.device
    ) -> Int[Tensor, "B N"]:
        """Positions for the rotary embedding; in the field, padding counts."""
        if self.config.text_positions == "field":
            first = torch.full((len(text_lengths), 1), self.config.field_length - text_columns, device=device)
        else:
            first = torch.tensor(text_lengths, device=device)[:, None] - text_columns
        return (first + torch.arange(length, device=device)).clamp(min=0)

    def text_lengths(self, text: Int[Tensor, "B T"]) -> list[int]:
        """Tokens of each row that are not padding; at least one."""
        if self.config.prompt == "class":
            return [1] * len(text)
        return [max(1, count) for count in (text != self.config.pad_token).sum(1).tolist()]

    def _image_position(self, rows: slice) -> Tensor:
        return self.image_positions(torch.arange(rows.start, rows.stop, device=self.feature_levels.device))

    def _embed_closing(self, batch: int, closing: int) -> Tensor:
        """A placeholder of zeros, then all but the last closing token; each with the embedding of text."""
        device = self.feature_levels.device
        tokens = torch.tensor(self.config.image_close[: closing - 1], device=device, dtype=torch.int64)
        known = self.language.embed_tokens(tokens)
        embedded = torch.cat([torch.zeros_like(self._image_position(slice(0, 1))).to(known.dtype), known])
        level = self.scale_embedding(torch.zeros(closing, device=device, dtype=torch.int64))
        return (embedded + level).expand(batch, -1, -1)

    def _scales_of(self, features: Tensor) -> tuple[int, ...]:
        count = features.shape[1] + 1
        starts = self.config.scale_starts
        if count not in starts:
            raise ValueError(f"features have {count - 1} rows; expected whole scales of {self.config.scales}.")
        return self.config.scales[: starts.index(count)]

    def _check(self, text: Tensor, codes: Tensor, features: Tensor) -> None:
        config = self.config
        if codes.ndim != 2 or codes.shape[1] != config.num_codes:
            raise ValueError(
                f"codes are {tuple(codes.shape)}; expected [B, {config.num_codes}] for the scales {config.scales}. Use "
                "the tokenizer that the generator was configured for."
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size:
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; expected 0 to {config.codebook_size - 1}. "
                "Use codes of the tokenizer that the generator was configured for, without dropped scales."
            )
        expected = (len(codes), config.num_codes - 1, config.code_width)
        if features.shape != expected:
            raise ValueError(
                f"features are {tuple(features.shape)}; expected {expected}, what "
                "tokenizer.scale_inputs(codes) gives. Check code_width and scales against the tokenizer."
            )
        if text.ndim != 2 or len(text) != len(codes) or not 1 <= text.shape[1] <= config.field_length:
            raise ValueError(
                f"text is {tuple(text.shape)}; expected [{len(codes)}, 1 to {config.field_length}]. Cut it to "
                f"text_length ({config.text_length}) before the opening tokens."
            )


def _weighted_mean(
    losses: Float[Tensor, "B n"], scale_weights: Sequence[float], *, sizes: Sequence[int]
) -> Float[Tensor, ""]:
    """Mean over tokens that count by their scale, those after the scales 1."""
    counts = [weight for weight, size in zip(scale_weights, sizes, strict=True) for _ in range(size)]
    counts += [1.0] * (losses.shape[1] - len(counts))
    weights = losses.new_tensor(counts)
    return (losses * weights).sum(1).mean() / weights.sum()

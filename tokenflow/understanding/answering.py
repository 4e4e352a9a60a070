"""From prompts to words: one token after the other on a key/value cache, greedy or drawn."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflow.language.cache import KeyValueCache
from tokenflow.understanding.batching import MultimodalBatch
from tokenflow.understanding.model import MultimodalModel


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen, and how many there may be."""

    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0: always the likeliest token; else logits are divided by it before one is drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this share of the probability; 1: from all."""
    seed: int = 0
    """With the number of the question it decides the draws, whatever the batch."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more.")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and top_p {self.top_p}; expected a temperature of 0 "
                "(the likeliest token) or more, and a top_p above 0 and up to 1."
            )


class Draws:
    """One stream of random numbers a question, a function of (seed, number of the question)."""

    def __init__(self, *, seed: int, numbers: Sequence[int]) -> None:
        # On the CPU, whose generator gives the same numbers on every machine.
        seeds = [zlib.crc32(f"answer {seed} {number}".encode()) for number in numbers]
        self._generators = [torch.Generator().manual_seed(value) for value in seeds]

    def uniform(self) -> Float[Tensor, "B"]:
        """The next number in [0, 1) of every question, float64."""
        return torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self._generators])


def choose_token(logits: Float[Tensor, "B V"], decoding: Decoding, draws: Draws) -> Int[Tensor, "B"]:
    """The next token of every row; softmax in fp32."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities, order = torch.softmax(logits.float() / decoding.temperature, dim=-1).sort(-1, descending=True)
    cumulative = probabilities.double().cumsum(-1)
    # A token stays while those before it hold less than top_p; the first always does.
    kept = (cumulative - probabilities < decoding.top_p).sum(-1, keepdim=True).clamp(min=1)
    total = cumulative.gather(-1, kept - 1)
    place = torch.searchsorted(cumulative, draws.uniform().to(logits.device)[:, None] * total, right=True)
    return order.gather(-1, torch.minimum(place, kept - 1))[:, 0]


@torch.no_grad()
def next_tokens(
    model: MultimodalModel,
    batch: MultimodalBatch,
    features: Float[Tensor, "I N C"] | None,
    *,
    vocabulary: int,
    decoding: Decoding,
    numbers: Sequence[int],
) -> Iterator[Int[Tensor, "B"]]:
    """Tokens that follow each row of a padded batch, one a step, without end: the caller stops at `max_new_tokens`.

    Args:
        model: The model.
        batch: Prompts, a row each.
        features: Of its images.
        vocabulary: Ids below this may be chosen: those that the text tokenizer has.
        decoding: How.
        numbers: Of the questions, for their draws.
    """
    lengths = [samples[0].end for samples in batch.layout.rows]
    rows, width = batch.ids.shape
    embeddings = model.embed_batch(batch, features)
    cache = KeyValueCache(
        model.config.language,
        batch=rows,
        max_length=width + decoding.max_new_tokens,
        device=embeddings.device,
        dtype=embeddings.dtype,
    )
    draws = Draws(seed=decoding.seed, numbers=numbers)
    hidden = model.language.prefill(embeddings, lengths=lengths, cache=cache, positions=model.rotary_positions(batch))
    positions = torch.tensor(lengths, device=embeddings.device)[:, None]
    last = hidden[torch.arange(rows, device=hidden.device), positions[:, 0] - 1]
    while True:
        tokens = choose_token(model.head(last)[:, :vocabulary], decoding, draws)
        yield tokens
        embedded = model.language.embed_tokens(tokens[:, None])
        last = model.language.step(embedded, cache=cache, positions=positions)[:, 0]
        positions = positions + 1


@torch.no_grad()
def score_answers(
    model: MultimodalModel, batch: MultimodalBatch, features: Float[Tensor, "I N C"] | None
) -> list[tuple[float, bool]]:
    """For each row of a padded batch, the log-probability of all its learned tokens, and whether each is the likeliest.

    An answer's end counts as one of its tokens.
    """
    hidden = model.hidden(batch, features).flatten(0, 1)
    found = model.head(hidden[batch.predict_at], batch.targets)
    rows = batch.predict_at // batch.ids.shape[1]
    totals = torch.zeros(len(batch.ids), dtype=torch.float64, device=hidden.device)
    totals.index_add_(0, rows, -found.losses.double())
    wrong = torch.zeros_like(totals).index_add_(0, rows, (~found.correct).double())
    return [(float(total), not bool(misses)) for total, misses in zip(totals, wrong, strict=True)]

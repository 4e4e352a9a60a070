"""The causal transformer of text-to-image generation and of multimodal understanding (paper, sections 3.3 and 3.4).

With the defaults it computes what transformers' LlamaForCausalLM or Qwen2ForCausalLM computes up to the final norm,
under the same parameter names. Legend: B rows, L positions, n new positions, W width, H query heads, G key/value heads,
D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenflow.language.cache import KeyValueCache
from tokenflow.language.config import LanguageConfig
from tokenflow.nn.rope import inverse_frequencies, rotary_tables, rotate
from tokenflow.ops.attention import attention, resolve_backend
from tokenflow.ops.attention_layout import AttentionLayout
from tokenflow.ops.attention_segmented import causal_attention, full_attention
from tokenflow.ops.norm import rms_norm

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[B, H, L, D] outputs of queries [B, H, L, D] over keys and values [B, G, L, D]."""
Rotary = tuple[Tensor, Tensor]
Keep = Literal["append", "refine", "discard"]

_QK_NORM_EPSILON = 1e-6


class Projection(nn.Linear):
    """A linear layer that starts normal, bias zero; by default with deviation 1 / sqrt(inputs), near Llama's 0.02."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, deviation: float | None = None) -> None:
        self.deviation = inputs**-0.5 if deviation is None else deviation
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.normal_(self.weight, std=self.deviation)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TokenEmbedding(nn.Embedding):
    """An embedding table that starts normal with a given deviation."""

    def __init__(self, rows: int, width: int, *, deviation: float) -> None:
        self.deviation = deviation
        super().__init__(rows, width)

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.normal_(self.weight, std=self.deviation)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, in fp32."""

    def __init__(self, width: int, *, epsilon: float, start: float = 1.0) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()
        self.epsilon = epsilon

    def reset_parameters(self) -> None:
        """Set the initial scale."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, epsilon=self.epsilon)


class SelfAttention(nn.Module):
    """Projections, optional norm of every query and key head, rotation, attention, projection."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        width, inner, groups = config.width, config.heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = Projection(width, inner, bias=config.qkv_bias)
        self.k_proj = Projection(width, groups, bias=config.qkv_bias)
        self.v_proj = Projection(width, groups, bias=config.qkv_bias)
        self.o_proj = Projection(inner, width, bias=config.output_bias)
        self.query_norm = RMSNorm(config.head_width, epsilon=_QK_NORM_EPSILON) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_width, epsilon=_QK_NORM_EPSILON) if config.qk_norm else None

    def forward(self, x: Tensor, *, rotary: Rotary, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Mix positions of x [B, L, W]; with `wanted`, what these positions of the flattened rows get, [n, W]."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_width)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        out = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out = out.transpose(1, 2).flatten(2)
        return self.o_proj(out if wanted is None else out.flatten(0, 1)[wanted])


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = Projection(config.width, config.mlp_width, bias=config.mlp_bias)
        self.up_proj = Projection(config.width, config.mlp_width, bias=config.mlp_bias)
        self.down_proj = Projection(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of x [B, L, W]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward part, with the norm before each (`pre`) or on what each adds (`post`)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.norm_order = config.norm_order
        self.self_attn = SelfAttention(config)
        self.mlp = FeedForward(config)
        # What is added is of the norm's size: all layers together begin as strong as the embeddings.
        start = (2 * config.depth) ** -0.5 if config.norm_order == "post" else 1.0
        self.input_layernorm = RMSNorm(config.width, epsilon=config.norm_epsilon, start=start)
        self.post_attention_layernorm = RMSNorm(config.width, epsilon=config.norm_epsilon, start=start)

    def forward(self, x: Tensor, *, rotary: Rotary, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Next hidden states of x [B, L, W]; with `wanted`, those of these positions of the flattened rows, [n, W]."""
        inputs = self.input_layernorm(x) if self.norm_order == "pre" else x
        mixed = self.self_attn(inputs, rotary=rotary, attend=attend, wanted=wanted)
        x = x if wanted is None else x.flatten(0, 1)[wanted]
        if self.norm_order == "post":
            x = x + self.input_layernorm(mixed)
            return x + self.post_attention_layernorm(self.mlp(x))
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class CausalTransformer(nn.Module):
    """Embeddings in, hidden states after the final norm out. Heads belong to the models that use it.

    `forward` computes a whole batch under a layout; `prefill` and `step` compute the same with a key/value cache.
    `embed_tokens` is the embedding table, for the caller to apply.
    """

    def __init__(self, config: LanguageConfig) -> None:
        """Build the layers; an attention backend that is not installed is an error here, not at the first batch."""
        super().__init__()
        if config.attention != "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            resolve_backend(config.attention, device=device)
        self.config = config
        self.embed_tokens = TokenEmbedding(config.vocabulary_size, config.width, deviation=config.embedding_deviation)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, epsilon=config.norm_epsilon)

    def forward(
        self,
        embeddings: Float[Tensor, "B L W"],
        *,
        layout: AttentionLayout,
        positions: Int[Tensor, "B L *axes"] | None = None,
        wanted: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "B L W"] | Float[Tensor, "n W"]:
        """Hidden states of whole rows, or of the positions that are wanted.

        Args:
            embeddings: Inputs of every position; those of padding must be finite.
            layout: Which positions see which.
            positions: For the rotation, of one axis or several; by default 0, 1, 2, ... from the start of each row,
                padding counted.
            wanted: Positions of the flattened rows; the last layer then transforms no others.
        """
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(embeddings.shape[:2])
        rotary = self._rotary(positions)
        attend = partial(attention, layout=layout, backend=self.config.attention)
        x = embeddings
        for number, layer in enumerate(self.layers, start=1):
            chosen = wanted if number == len(self.layers) else None
            if self.config.checkpointing == "layer" and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotary=rotary, attend=attend, wanted=chosen, use_reentrant=False)
            else:
                x = layer(x, rotary=rotary, attend=attend, wanted=chosen)
        return self.norm(x)

    @torch.no_grad()
    def prefill(
        self,
        embeddings: Float[Tensor, "B T W"],
        *,
        lengths: Sequence[int],
        cache: KeyValueCache,
        positions: Int[Tensor, "B T *axes"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Put causal text into an empty cache and return its hidden states.

        Args:
            embeddings: Texts at the start of their rows, right-padded to one length T with anything finite.
            lengths: Text positions of each row; what lies behind them is hidden from all later positions.
            cache: Empty. Afterwards it holds T slots, and the next positions of all rows go to slot T.
            positions: For the rotation; by default 0, 1, 2, ...
        """
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(embeddings.shape[:2])
        cache.begin(lengths, embeddings.shape[1])

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            for slots, new in zip(cache.layer(number), (key, value), strict=True):
                slots[:, :, : new.shape[2]] = new
            return causal_attention(query, key, value)

        return self._run(embeddings, positions, attend)

    @torch.no_grad()
    def step(
        self,
        embeddings: Float[Tensor, "B n W"],
        *,
        cache: KeyValueCache,
        positions: Int[Tensor, "B n *axes"],
        keep: Keep = "append",
    ) -> Float[Tensor, "B n W"]:
        """Hidden states of n new positions that see everything in the cache and one another (a scale, or one token).

        Args:
            embeddings: Of the new positions.
            cache: Keys and values so far.
            positions: For the rotation.
            keep: `append` puts the new positions behind the others in the cache. `discard` leaves the cache as it was.
                `refine` does too, and the new positions stand in for the newest n of the cache: they see what lies
                before those, and one another (further sampling steps of a scale whose first step was appended).
        """
        count = embeddings.shape[1]
        first = cache.length - count if keep == "refine" else cache.length
        if first < 0:
            raise ValueError(f"refine stands in for the newest {count} positions; the cache holds {cache.length}.")
        end = first + count
        cache.check_room(first, count)
        mask = cache.key_mask(end)

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.layer(number)
            saved = None if keep == "append" else (keys[:, :, first:end].clone(), values[:, :, first:end].clone())
            keys[:, :, first:end], values[:, :, first:end] = key, value
            out = full_attention(query.to(keys.dtype), keys[:, :, :end], values[:, :, :end], mask).to(query.dtype)
            if saved is not None:
                keys[:, :, first:end], values[:, :, first:end] = saved
            return out

        hidden = self._run(embeddings, positions, attend)
        if keep == "append":
            cache.length = end
        return hidden

    @torch.no_grad()
    def extend(
        self, embeddings: Float[Tensor, "B n W"], *, cache: KeyValueCache, positions: Int[Tensor, "B n *axes"]
    ) -> Float[Tensor, "B n W"]:
        """Append n causal positions to a cache, empty or not: each sees the cache and the new ones up to itself."""
        first, count = cache.length, embeddings.shape[1]
        end = first + count
        cache.check_room(first, count)
        visible = torch.ones(count, end, dtype=torch.bool, device=embeddings.device).tril(first)[None, None]
        known = cache.key_mask(end)
        mask = visible if known is None else visible & known

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.layer(number)
            keys[:, :, first:end], values[:, :, first:end] = key, value
            out = causal_attention(query.to(keys.dtype), keys[:, :, :end], values[:, :, :end], mask)
            return out.to(query.dtype)

        hidden = self._run(embeddings, positions, attend)
        cache.length = end
        return hidden

    def _run(self, x: Tensor, positions: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        rotary = self._rotary(positions)
        for number, layer in enumerate(self.layers):
            x = layer(x, rotary=rotary, attend=partial(attend, number))
        return self.norm(x)

    def _rotary(self, positions: Tensor) -> Rotary:
        config = self.config
        frequencies = inverse_frequencies(
            config.head_width, theta=config.rope_theta, scaling=config.rope_scaling, device=positions.device
        )
        return rotary_tables(positions, frequencies)

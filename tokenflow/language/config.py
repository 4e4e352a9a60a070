"""Sizes and variants of the language model that generation and understanding share, and named presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tokenflow.nn.rope import check_rope_scaling
from tokenflow.ops.attention import AttentionBackend

NormOrder = Literal["pre", "post"]
Checkpointing = Literal["none", "layer"]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A Llama-like causal transformer: RMSNorm, rotary positions, grouped heads, gated SiLU feed-forward."""

    vocabulary_size: int
    """Rows of the embedding table, visual tokens included once the vocabulary is extended."""
    width: int
    """Channels of a token."""
    depth: int
    """Number of layers."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads; they divide the query heads."""
    head_width: int
    """Channels of a head; even."""
    mlp_width: int
    """Hidden channels of the feed-forward part."""
    norm_epsilon: float = 1e-5
    """Epsilon of the layer norms and of the final one."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as transformers writes it, `rope_type` "linear" or "llama3"; None: none."""
    qkv_bias: bool = False
    """Biases of query, key and value (Qwen2)."""
    output_bias: bool = False
    """Bias of the attention's output (Llama with `attention_bias`)."""
    mlp_bias: bool = False
    """Biases of the feed-forward part (Llama with `mlp_bias`)."""
    tie_embeddings: bool = False
    """The head's weight is the embedding table. Heads belong to the models; this tells them."""
    norm_order: NormOrder = "pre"
    """`pre`: x + attention(norm(x)), as in Llama; `post`: x + norm(attention(x)), re-ordered (section 3.3)."""
    qk_norm: bool = False
    """RMSNorm (epsilon 1e-6) of every query and key head before the rotation (paper, section 3.3)."""
    embedding_deviation: float = 0.02
    """Deviation with which embeddings begin in a new model: 0.02 as Llama's. With `post` norms, which add vectors of
    length sqrt(width) whatever their input, 1 lets text and positions be heard from the first step."""
    max_positions: int = 4096
    """Longest row; a statement about the weights, nothing is allocated by it."""
    attention: AttentionBackend = "auto"
    """Backend of attention: auto, dense (reference), segmented, flex, flash."""
    checkpointing: Checkpointing = "none"
    """`layer`: keep only each layer's input for backward and compute the rest again."""

    def __post_init__(self) -> None:
        sizes = ("vocabulary_size", "width", "depth", "heads", "kv_heads", "head_width", "mlp_width", "max_positions")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads ({self.kv_heads}); got {self.heads}.")
        if self.head_width % 2:
            raise ValueError(f"head_width must be even for rotary positions; got {self.head_width}.")
        for name, choices in (
            ("norm_order", NormOrder),
            ("checkpointing", Checkpointing),
            ("attention", AttentionBackend),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}.")
        check_rope_scaling(self.rope_scaling)


LANGUAGE_PRESETS: dict[str, LanguageConfig] = {
    "llama-2-7b": LanguageConfig(
        vocabulary_size=32000, width=4096, depth=32, heads=32, kv_heads=32, head_width=128, mlp_width=11008
    ),
    "tinyllama-1.1b": LanguageConfig(
        vocabulary_size=32000,
        width=2048,
        depth=22,
        heads=32,
        kv_heads=4,
        head_width=64,
        mlp_width=5632,
        max_positions=2048,
    ),
    "vicuna-13b": LanguageConfig(
        vocabulary_size=32000, width=5120, depth=40, heads=40, kv_heads=40, head_width=128, mlp_width=13824
    ),
    "qwen2.5-14b": LanguageConfig(
        vocabulary_size=152064,
        width=5120,
        depth=48,
        heads=40,
        kv_heads=8,
        head_width=128,
        mlp_width=13824,
        norm_epsilon=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
        max_positions=32768,
    ),
}
"""Sizes of `meta-llama/Llama-2-7b-hf`, `TinyLlama/TinyLlama-1.1B-Chat-v1.0`, `lmsys/vicuna-13b-v1.5` and
`Qwen/Qwen2.5-14B-Instruct`."""

"""One vision transformer for every tower of the tokenizer: CLIP, SigLIP, ViTamin's trunk and the semantic decoder.

They differ in small things (class token, biases, norms, activation), which are fields of the configuration.
Legend: B batch, N tokens, C width, h and w the token grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tokenflow.nn.mobile_stem import MobileStem, MobileStemConfig

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Sizes and variants of a vision transformer."""

    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; they divide the width."""
    mlp_width: int
    """Hidden channels of the feed-forward part."""
    patch_size: int = 16
    """Pixels (or cells, for a decoder) a token covers on each side."""
    in_channels: int = 3
    """Channels of the input: 3 for images, the code width for a decoder."""
    position_grid: int | None = None
    """Side of the grid of learned positions; None: the trunk has no positions of its own (ViTamin)."""
    position_interpolation_offset: float = 0.0
    """Added to the wanted side before the bicubic factor is taken, which torch then samples at (authors' CLIP: 0.1)."""
    class_token: bool = False
    """Carry a class token through the blocks; it is dropped from the output."""
    stem: MobileStemConfig | None = None
    """Convolutional stem in place of the patch convolution (ViTamin)."""
    patch_bias: bool = True
    """Bias of the patch convolution (CLIP has none)."""
    pre_norm: bool = False
    """Layer norm before the first block (CLIP)."""
    final_norm: bool = True
    """Layer norm after the last block that runs."""
    attention_bias: Literal["full", "query_value"] = "full"
    """Which of query, key and value carry a bias; `query_value` is BEiT's."""
    mlp: Literal["plain", "gated"] = "plain"
    """`gated`: norm, then activation(a) * b (ViTamin's GeGLU)."""
    activation: Activation = "gelu"
    """`quick_gelu` is x * sigmoid(1.702 x)."""
    norm_epsilon: float = 1e-6
    """Epsilon of every layer norm."""
    unused_blocks: int = 0
    """Last blocks carried, frozen, only because released checkpoints hold them (SigLIP reads hidden_states[-2])."""
    unused_head: bool = False
    """Carry, frozen, the last norm and the pooling head of released checkpoints, which nothing reads (SigLIP)."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}); got {self.width}. Change either.")
        if not 0 <= self.unused_blocks < self.depth:
            raise ValueError(f"unused_blocks must be in 0..{self.depth - 1} (depth - 1); got {self.unused_blocks}.")
        if self.stem is not None and self.stem.out_channels != self.width:
            raise ValueError(
                f"the stem must end at the width of the blocks ({self.width}); got {self.stem.out_channels}. "
                "Set stem.channels[-1] to width."
            )


class VisionTransformer(nn.Module):
    """Image (or code map) to one token a grid cell."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.stem is not None:
            self.patch_embedding: nn.Module = MobileStem(config.stem)
        else:
            self.patch_embedding = nn.Conv2d(
                config.in_channels, width, config.patch_size, stride=config.patch_size, bias=config.patch_bias
            )
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5) if config.class_token else None
        self.position_embedding = None
        if config.position_grid is not None:
            num_positions = config.position_grid**2 + int(config.class_token)
            self.position_embedding = nn.Parameter(torch.randn(num_positions, width) * width**-0.5)
        self.pre_norm = nn.LayerNorm(width, eps=config.norm_epsilon) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(width, eps=config.norm_epsilon) if config.final_norm else nn.Identity()
        self.unused_head = PoolingHead(config) if config.unused_head else None
        for module in [*self.blocks[self._running_blocks :], self.unused_head]:
            if module is not None:
                module.requires_grad_(False)

    @property
    def _running_blocks(self) -> int:
        return self.config.depth - self.config.unused_blocks

    def forward(self, images: Float[Tensor, "B channels H W"]) -> Float[Tensor, "B N C"]:
        """Tokens [B, h*w, C] in row-major order, after the last block that runs (and its norm, where there is one)."""
        return self.hidden_states(images)[-1]

    def hidden_states(self, images: Float[Tensor, "B channels H W"]) -> list[Float[Tensor, "B N C"]]:
        """Tokens after every running block, class token dropped; the last entry has the final norm."""
        x = self.patch_embedding(images)
        grid = (x.shape[-2], x.shape[-1])
        x = rearrange(x, "b c h w -> b (h w) c")
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        if self.position_embedding is not None:
            x = x + self._positions(grid).to(x.dtype)
        x = self.pre_norm(x)
        first = int(self.config.class_token)
        states = []
        for block in self.blocks[: self._running_blocks]:
            x = block(x)
            states.append(x[:, first:])
        states[-1] = self.final_norm(states[-1])
        return states

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Learned positions [N, C], resized where the image has another grid than they were learned on."""
        learned = self.config.position_grid
        if grid == (learned, learned):
            return self.position_embedding
        first = int(self.config.class_token)
        table = rearrange(self.position_embedding[first:], "(h w) c -> 1 c h w", h=learned)
        # The factor, not the size: torch samples at the factor given, offset included, as the released models do.
        factors = tuple((side + self.config.position_interpolation_offset) / learned for side in grid)
        table = F.interpolate(table.float(), scale_factor=factors, mode="bicubic", align_corners=False)
        if tuple(table.shape[-2:]) != grid:
            raise ValueError(
                f"positions learned on a {learned}x{learned} grid cannot be resized to {grid} with offset "
                f"{self.config.position_interpolation_offset}; got {tuple(table.shape[-2:])}. Use an offset below 1."
            )
        return torch.cat([self.position_embedding[:first], rearrange(table, "1 c h w -> (h w) c")])


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp: nn.Module = GatedMlp(config) if config.mlp == "gated" else Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] to tokens of the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        full_bias = config.attention_bias == "full"
        self.query_key_value = nn.Linear(width, 3 * width, bias=full_bias)
        self.query_bias = None if full_bias else nn.Parameter(torch.zeros(width))
        self.value_bias = None if full_bias else nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] to tokens of the same shape."""
        qkv = self.query_key_value(x)
        if self.query_bias is not None:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
            qkv = qkv + bias.to(qkv.dtype)
        query, key, value = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.output(rearrange(x, "b heads n d -> b n (heads d)"))


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.mlp_width)
        self.contract = nn.Linear(config.mlp_width, config.width)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] to tokens of the same shape."""
        return self.contract(activate(self.expand(x), kind=self.activation))


class GatedMlp(nn.Module):
    """GeGLU with a norm of its own in front (ViTamin)."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.gate = nn.Linear(config.width, config.mlp_width)
        self.expand = nn.Linear(config.width, config.mlp_width)
        self.contract = nn.Linear(config.mlp_width, config.width)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] to tokens of the same shape."""
        x = self.norm(x)
        return self.contract(activate(self.gate(x), kind=self.activation) * self.expand(x))


class PoolingHead(nn.Module):
    """SigLIP's last norm and attention pooling. Held so that released checkpoints load and save whole; never called."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.input_norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.probe = nn.Parameter(torch.randn(width) * width**-0.5)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.mlp = Mlp(config)


def activate(x: Tensor, *, kind: Activation) -> Tensor:
    """Element-wise activation of any tensor."""
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

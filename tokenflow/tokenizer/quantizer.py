"""Shared-index and multi-scale residual quantisation (paper section 3.2, equations 1 to 3; section 3.2 "multi-scale").

Shape legend: B batch, C channels of all codebooks together (semantic part first), H x W the full grid, h x w the grid
of one scale, L codes of an image (scales concatenated, row-major inside a scale), K codebook size.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenflow.ops.nearest_code import full_precision_matmul, nearest_code, unit

DROPPED = -1
"""The code written for every position of a dropped scale."""

_ENTROPY_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """What the quantiser is: codebooks that share one index, and the scales of the residual loop."""

    codebook_size: int
    """Number of codes K, the same for every codebook."""
    code_widths: tuple[int, ...] = (32, 8)
    """Width of each codebook, semantic first (paper: 32 semantic, 8 pixel)."""
    distance_weights: tuple[float, ...] = (1.0, 1.0)
    """Weight of each codebook's distance in the joint search (paper: w_dis = 1.0)."""
    scales: tuple[int, ...] = (1,)
    """Side of each scale's grid, increasing; the last is the full grid. One scale is plain quantisation."""
    commitment_weight: float = 0.25
    """Weight of the commitment term, beta in equation 3."""
    entropy_weight: float = 0.0
    """Weight of the entropy term; zero leaves it out at no cost."""
    entropy_temperature: float = 0.01
    """Temperature of the softmax over distances in the entropy term."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.codebook_size < 1:
            raise ValueError(f"codebook_size is {self.codebook_size}; expected at least 1.")
        if not self.code_widths or any(width < 1 for width in self.code_widths):
            raise ValueError(f"code_widths is {self.code_widths}; expected at least one positive width.")
        if len(self.distance_weights) != len(self.code_widths):
            raise ValueError(
                f"distance_weights has {len(self.distance_weights)} entries and code_widths {len(self.code_widths)}; "
                "expected one a codebook."
            )
        if any(weight < 0 for weight in self.distance_weights) or not any(self.distance_weights):
            raise ValueError(f"distance_weights is {self.distance_weights}; expected none negative and not all zero.")
        if (
            not self.scales
            or self.scales[0] < 1
            or any(b <= a for a, b in zip(self.scales, self.scales[1:], strict=False))
        ):
            raise ValueError(f"scales is {self.scales}; expected at least one, positive and strictly increasing.")
        if self.commitment_weight < 0 or self.entropy_weight < 0:
            raise ValueError(
                f"commitment_weight is {self.commitment_weight} and entropy_weight {self.entropy_weight}; "
                "expected none negative."
            )
        if self.entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature is {self.entropy_temperature}; expected more than 0.")


class QuantizerOutput(NamedTuple):
    """What one scale's quantisation gives; the losses are fp32 scalars.

    A tuple, because DeepSpeed's ZeRO-3 hooks find tensors in tuples and not in dataclasses.
    """

    quantized: Tensor
    """[B, C, h, w], unit norm in each part; gradients go straight through to the features' normalisation."""
    indices: Tensor
    """[B, h, w] int64."""
    codebook_loss: Tensor
    """mean((code - sg(feature))^2) over all channels."""
    commitment_loss: Tensor
    """beta * mean((sg(code) - feature)^2) over all channels."""
    entropy_loss: Tensor
    """Entropy term times its weight; zero when the weight is."""


class MultiScaleOutput(NamedTuple):
    """What the residual loop gives; the losses are means over the scales that were not dropped."""

    quantized: Tensor
    """[B, C, H, W], sum of the scales' codes at the full grid, straight-through."""
    indices: Tensor
    """[B, L] int64; `DROPPED` (-1) at the positions of a dropped scale."""
    codebook_loss: Tensor
    """Mean over scales."""
    commitment_loss: Tensor
    """Mean over scales, beta included."""
    entropy_loss: Tensor
    """Mean over scales, weight included."""


class SharedIndexQuantizer(nn.Module):
    """N codebooks searched together: one index selects a row of each (equations 1 to 3).

    The codebooks are parameters of this very module (`codebook_0`, `codebook_1`, ...), so that ZeRO-3 gathers them
    for its forward.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        for i, width in enumerate(config.code_widths):
            # Directions are all that counts; random directions are spread evenly over the sphere.
            self.register_parameter(f"codebook_{i}", nn.Parameter(unit(torch.randn(config.codebook_size, width))))

    @property
    def codebooks(self) -> list[nn.Parameter]:
        """The codebooks, [K, C_i] each, in the order of `code_widths`."""
        return [getattr(self, f"codebook_{i}") for i in range(len(self.config.code_widths))]

    def forward(self, features: Float[Tensor, "B C h w"]) -> QuantizerOutput:
        """Quantise `features` [B, C, h, w], C the sum of `code_widths`, in fp32 under any autocast.

        `quantized` comes back in the dtype of `features`, the losses in fp32. Raises ValueError for another shape.
        """
        if features.ndim != 4 or features.shape[1] != sum(self.config.code_widths):
            raise ValueError(
                f"features are {tuple(features.shape)}; expected [B, {sum(self.config.code_widths)}, h, w], the sum "
                f"of code_widths {self.config.code_widths}. Fix code_widths or the encoders' output width."
            )
        with torch.autocast(features.device.type, enabled=False):
            batch, _, height, width = features.shape
            tokens = (
                features.float().permute(0, 2, 3, 1).flatten(0, 2)
            )  # fp32 from here on: bf16 flips 2 % of the indices
            parts = [unit(part) for part in tokens.split(self.config.code_widths, dim=1)]
            indices = nearest_code(parts, self.codebooks, weights=self.config.distance_weights)
            normalised, codes = torch.cat(parts, dim=1), self.lookup(indices)
            codebook_loss = F.mse_loss(codes, normalised.detach())
            commitment_loss = self.config.commitment_weight * F.mse_loss(normalised, codes.detach())
            quantized = normalised + (codes - normalised).detach()
            return QuantizerOutput(
                quantized.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2).to(features.dtype),
                indices.view(batch, height, width),
                codebook_loss,
                commitment_loss,
                self._entropy_loss(parts),
            )

    def lookup(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... C"]:
        """Return the normalised codes [..., C] in fp32; gradients reach the codebooks.

        Only the chosen rows are normalised, so the cost does not grow with the codebook.
        """
        return torch.cat([unit(F.embedding(indices, codebook)) for codebook in self.codebooks], dim=-1)

    def _entropy_loss(self, parts: Sequence[Tensor]) -> Tensor:
        """Mean entropy of each token's code distribution minus the entropy of their mean, over blocks of tokens."""
        if not self.config.entropy_weight:
            return parts[0].new_zeros(())
        codebooks = [unit(codebook) for codebook in self.codebooks]
        block = max(1, _ENTROPY_CHUNK_ELEMENTS // self.config.codebook_size)
        entropy, probability = parts[0].new_zeros(()), parts[0].new_zeros(self.config.codebook_size)
        for features in zip(*(part.split(block) for part in parts), strict=True):
            # Recomputed in the backward pass: tokens x K probabilities never live at once.
            block_entropy, block_probability = checkpoint(self._block_entropy, features, codebooks, use_reentrant=False)
            entropy, probability = entropy + block_entropy, probability + block_probability
        num_tokens = len(parts[0])
        mean = probability / num_tokens
        entropy_of_mean = -(mean * torch.log(mean + 1e-5)).sum()
        return self.config.entropy_weight * (entropy / num_tokens - entropy_of_mean)

    def _block_entropy(self, features: Sequence[Tensor], codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        with full_precision_matmul():
            cosines = sum(
                w * (f @ e.T) for w, f, e in zip(self.config.distance_weights, features, codebooks, strict=True)
            )
        log_probability = F.log_softmax(2 * cosines / self.config.entropy_temperature, dim=1)
        probability = log_probability.exp()
        return -(probability * log_probability).sum(), probability.sum(0)


class MultiScaleQuantizer(nn.Module):
    """Residual quantisation over growing grids: each scale codes what the coarser ones left (paper section 3.2)."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = config.scales
        self.quantizer = SharedIndexQuantizer(config)

    @property
    def num_codes(self) -> int:
        """Codes of one image, L."""
        return sum(scale**2 for scale in self.scales)

    def forward(self, features: Float[Tensor, "B C H W"], *, dropped_scale: int | None = None) -> MultiScaleOutput:
        """Quantise `features` [B, C, H, W], H = W = `scales[-1]`.

        `dropped_scale` is the position in `scales` of a scale to leave out (see `draw_dropped_scale`): it adds nothing
        to the sum or to the losses, and its codes are `DROPPED`. The last scale may be dropped, the first may not.
        fp32 inside; `quantized` comes back in the dtype of `features`. Raises ValueError for another grid.
        """
        self._check_forward(features, dropped_scale)
        with torch.autocast(features.device.type, enabled=False):
            residual = features.float()
            total = torch.zeros_like(residual)
            outputs: list[QuantizerOutput] = []
            indices: list[Tensor] = []
            for position, scale in enumerate(self.scales):
                if position == dropped_scale:
                    indices.append(torch.full((len(features), scale**2), DROPPED, device=features.device))
                    continue
                output = self.quantizer(F.interpolate(residual, size=(scale, scale), mode="area"))
                code = self._to_grid(output.quantized, self.scales[-1])
                total = total + code
                residual = residual - code.detach()
                outputs.append(output)
                indices.append(output.indices.flatten(1))
            return MultiScaleOutput(
                total.to(features.dtype),
                torch.cat(indices, dim=1),
                torch.stack([output.codebook_loss for output in outputs]).mean(),
                torch.stack([output.commitment_loss for output in outputs]).mean(),
                torch.stack([output.entropy_loss for output in outputs]).mean(),
            )

    def decode_indices(self, indices: Int[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """Sum the codes [B, C, H, W] of `indices` [B, L], each scale resized directly to the full grid; fp32.

        `indices` may be a prefix of whole scales. Raises ValueError for another length or for codes outside 0..K-1.
        """
        return self.scale_features(indices)[-1]

    def scale_features(self, indices: Int[Tensor, "B L"]) -> list[Float[Tensor, "B C H W"]]:
        """Return the running sums [B, C, H, W] at the full grid after each scale that `indices` holds; fp32.

        The last one is the decoder's input.
        """
        sums: list[Tensor] = []
        for code in self._code_maps(indices):
            code = self._to_grid(code, self.scales[-1])
            sums.append(sums[-1] + code if sums else code)
        return sums

    def scale_inputs(self, indices: Int[Tensor, "B L"]) -> Float[Tensor, "B rows C"]:
        """Return the generator's inputs [B, L - scales[0]^2, C] in fp32: what is known before each of scales 2..n.

        The sum is resized from each scale to the next (paper section 3.3), while the decoder sums at the full grid: two
        rules, both kept. For a prefix of whole scales the rows of one scale more come back, when there is one.
        """
        maps = self._code_maps(indices)
        total: Tensor | None = None
        rows: list[Tensor] = []
        for code, next_scale in zip(maps, self.scales[1:], strict=False):
            total = self._to_grid(code if total is None else total + code, next_scale)
            rows.append(total.flatten(2).transpose(1, 2))
        return torch.cat(rows, dim=1) if rows else maps[0].new_zeros(len(indices), 0, maps[0].shape[1])

    def _code_maps(self, indices: Tensor) -> list[Tensor]:
        lengths, length = [], 0
        for scale in self.scales:
            if length < indices.shape[1]:
                lengths.append(scale**2)
                length += scale**2
        if indices.ndim != 2 or not lengths or length != indices.shape[1]:
            raise ValueError(
                f"indices are {tuple(indices.shape)}; expected [B, L], L a whole number of the scales {self.scales} "
                f"({self.num_codes} codes for all of them)."
            )
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.config.codebook_size:
            raise ValueError(
                f"indices run from {int(indices.min())} to {int(indices.max())}; expected 0 to "
                f"{self.config.codebook_size - 1}. A dropped scale (-1) cannot be decoded: encode without dropping."
            )
        with torch.autocast(indices.device.type, enabled=False):
            codes = self.quantizer.lookup(indices).split(lengths, dim=1)
        return [code.transpose(1, 2).unflatten(2, (math.isqrt(code.shape[1]),) * 2) for code in codes]

    def _to_grid(self, code: Tensor, side: int) -> Tensor:
        return code if code.shape[-1] == side else F.interpolate(code, size=(side, side), mode="bicubic")

    def _check_forward(self, features: Tensor, dropped_scale: int | None) -> None:
        if features.ndim != 4 or features.shape[-2:] != (self.scales[-1], self.scales[-1]):
            raise ValueError(
                f"features are {tuple(features.shape)}; expected a grid of {self.scales[-1]} x {self.scales[-1]}, the "
                f"last of the scales {self.scales}. Fix scales, or image_size over the encoder's patch."
            )
        if dropped_scale is not None and not 0 < dropped_scale < len(self.scales):
            raise ValueError(
                f"dropped_scale is {dropped_scale}; expected None or 1 to {len(self.scales) - 1} (never the first)."
            )


def draw_dropped_scale(*, num_scales: int, probability: float, seed: int, step: int) -> int | None:
    """Draw the scale to drop at `step`: with `probability` a position in 1..num_scales-1, else None.

    The first scale is never dropped. A function of (seed, step) alone: every rank and a resumed run draw the same.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability is {probability}; expected 0 to 1.")
    if num_scales < 2:
        return None
    generator = random.Random(f"scale drop {seed} {step}")
    return generator.randrange(1, num_scales) if generator.random() < probability else None

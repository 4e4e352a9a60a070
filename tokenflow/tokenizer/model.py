"""The TokenFlow tokenizer: images to codes and back (paper, section 3.2).

Images are float32 [B, 3, S, S] in [-1, 1]; codes are int64 [B, L], scales concatenated, row-major inside a scale.
Legend: B batch, L codes an image, N cells of the grid, C code channels (semantic first).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.decoders import PixelDecoder, SemanticDecoder
from tokenflow.tokenizer.encoders import BranchEncoder
from tokenflow.tokenizer.quantizer import MultiScaleOutput, MultiScaleQuantizer, QuantizerConfig

if TYPE_CHECKING:
    from tokenflow.tokenizer.teachers import TeacherConfig

FeatureStrategy = Literal["last_scale", "all_scales", "residuals", "semantic"]
PIXEL_LIMIT = 2.0


class TokenizerOutput(NamedTuple):
    """What one training forward returns; the losses are scalars, averaged over the scales.

    A tuple, because DeepSpeed's ZeRO-3 hooks find tensors in tuples and not in dataclasses.
    """

    reconstruction: Float[Tensor, "B 3 S S"] | None
    """fp32, about [-1, 1], not clamped; None without a pixel decoder."""
    semantic: Float[Tensor, "B N T"] | None
    """Prediction of the teacher's tokens, fp32; None without a semantic decoder."""
    indices: Int[Tensor, "B L"]
    """Codes; -1 at a scale that this step dropped (`decode` refuses those)."""
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]
    entropy_loss: Float[Tensor, ""]


class TokenFlowTokenizer(nn.Module):
    """Encoders of all branches, one shared-index multi-scale quantiser, semantic and pixel decoders.

    Built with random weights whatever the configuration's `pretrained` says: `build` (or `pretrained_weights` in
    pretrained.py, for sharded models) brings the encoders' first weights, `from_pretrained` a whole tokenizer.
    Under ZeRO-3 only `forward` sees whole weights: evaluate with its output, or gather before `encode` and `decode`.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.teacher: TeacherConfig | None = None
        """The teacher it was trained with, for evaluations; saved with it."""
        self.encoders = nn.ModuleDict({branch.name: BranchEncoder(branch) for branch in config.branches})
        self.quantizer = MultiScaleQuantizer(
            QuantizerConfig(
                codebook_size=config.codebook_size,
                code_widths=config.code_widths,
                distance_weights=tuple(branch.weight for branch in config.branches),
                commitment_weight=config.commitment_weight,
                entropy_weight=config.entropy_weight,
                scales=config.scales,
            )
        )
        semantic, pixel = config.semantic_decoder, config.pixel_decoder
        self.semantic_decoder = None if semantic is None else SemanticDecoder(semantic)
        self.pixel_decoder = (
            None
            if pixel is None
            else PixelDecoder(pixel, code_width=config.width_of(pixel.reads), image_size=config.image_size)
        )

    @classmethod
    def build(cls, config: TokenizerConfig) -> TokenFlowTokenizer:
        """A new tokenizer whose encoders start from their `pretrained` sources (OSError where one cannot be had)."""
        from tokenflow.tokenizer.pretrained import load_pretrained_encoders

        return load_pretrained_encoders(cls(config))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | torch.device = "cpu",
    ) -> TokenFlowTokenizer:
        """A tokenizer in eval mode from a folder written by `save_pretrained`, or a hub repository of that layout.

        On the CPU its weights are private memory maps of the files: nothing is copied until it is written to.

        Args:
            source: A folder, or the id of a hub repository.
            revision: Branch, tag or commit of the hub repository.
            token: Access token of the hub; None: what `hf auth login` stored.
            device: Where the weights go.

        Raises:
            OSError: Neither a folder nor a hub repository that can be reached, or files are missing.
            ValueError: The files hold something else, or are damaged.
        """
        from tokenflow.tokenizer.pretrained import load_tokenizer

        return load_tokenizer(cls, source, revision=revision, token=token, device=device)

    def save_pretrained(
        self, directory: str | Path, *, max_shard_size: int | str = "5GB", metrics: Mapping[str, float] | None = None
    ) -> Path:
        """Write safetensors (in shards and an index above `max_shard_size`), config.json and a model card.

        A process killed meanwhile leaves the old model, the new one, or a folder that `from_pretrained` refuses.
        `metrics` are listed in the card. Returns the folder.
        """
        from tokenflow.tokenizer.pretrained import save_tokenizer

        return save_tokenizer(self, directory, max_shard_size=max_shard_size, metrics=metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload TokenFlow tokenizer",
        revision: str | None = None,
        max_shard_size: int | str = "5GB",
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes as one commit; makes the repository, and the branch `revision`.

        Returns the commit's address. Errors are huggingface_hub's own.
        """
        from tokenflow.tokenizer.pretrained import push_tokenizer

        return push_tokenizer(
            self,
            repo_id,
            max_shard_size=max_shard_size,
            metrics=metrics,
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
        )

    def forward(self, images: Float[Tensor, "B 3 S S"], *, dropped_scale: int | None = None) -> TokenizerOutput:
        """One training step's forward; `dropped_scale` is the index of a scale to leave out (random scale drop)."""
        quantized = self._quantize(images, dropped_scale=dropped_scale)
        reconstruction, semantic = self._decode(quantized.quantized)
        return TokenizerOutput(
            reconstruction=reconstruction,
            semantic=semantic,
            indices=quantized.indices,
            codebook_loss=quantized.codebook_loss,
            commitment_loss=quantized.commitment_loss,
            entropy_loss=quantized.entropy_loss,
        )

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Int[Tensor, "B L"]:
        """Images in [-1, 1] to codes. Without gradients; use `forward` to train."""
        self._check_range(images)
        return self._quantize(images, dropped_scale=None).indices

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 S S"]:
        """Codes, or a prefix of whole scales, to images clamped to [-1, 1]. Without gradients."""
        return self.pixel_decoder(self.pixel_codes(codes)).float().clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """`decode(encode(images))`. Without gradients."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def pixel_codes(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B C h w"]:
        """What the pixel decoder reads of codes: all scales summed on the full grid, fp32. Without gradients."""
        if self.pixel_decoder is None:
            raise ValueError("this tokenizer has no pixel decoder. Use `features`, or a preset with pixel_decoder set.")
        return self._read(self.quantizer.decode_indices(self._check_codes(codes)), self.config.pixel_decoder.reads)

    @torch.no_grad()
    def decode_semantic(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B N T"]:
        """Codes to the predicted teacher tokens. Without gradients."""
        if self.semantic_decoder is None:
            raise ValueError("this tokenizer has no semantic decoder. Use a preset with semantic_decoder set.")
        quantized = self.quantizer.decode_indices(self._check_codes(codes))
        return self.semantic_decoder(self._read(quantized, self.config.semantic_decoder.reads)).float()

    @torch.no_grad()
    def features(
        self, codes: Int[Tensor, "B L"], strategy: FeatureStrategy = "last_scale"
    ) -> Float[Tensor, "B tokens channels"]:
        """Continuous features of codes for a language model (Table 8). Without gradients.

        `last_scale` [B, N, C]: the sum of all scales on the full grid. `semantic` [B, N, C_1]: its first branch.
        `residuals` [B, L, C]: each code's own vector. `all_scales` [B, L, C]: the running sum after each scale, at
        that scale's resolution.
        """
        codes = self._check_codes(codes)
        if strategy == "residuals":
            return self.quantizer.quantizer.lookup(codes)
        if strategy == "all_scales":
            sums = self.quantizer.scale_features(codes)
            rows = [
                rearrange(F.interpolate(total, size=(scale, scale), mode="area"), "b c h w -> b (h w) c")
                for total, scale in zip(sums, self.config.scales, strict=False)
            ]
            return torch.cat(rows, dim=1)
        if strategy not in ("last_scale", "semantic"):
            raise ValueError(
                f"unknown strategy {strategy!r}; expected last_scale, all_scales, residuals or semantic (Table 8)."
            )
        total = rearrange(self.quantizer.decode_indices(codes), "b c h w -> b (h w) c")
        return total if strategy == "last_scale" else total[..., : self.config.code_widths[0]]

    @torch.no_grad()
    def scale_inputs(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B rows C"]:
        """The next-scale generator's inputs: rows of scales 2..n, accumulated recursively (L - scales[0]^2 rows)."""
        return self.quantizer.scale_inputs(self._check_codes(codes))

    def _quantize(self, images: Tensor, *, dropped_scale: int | None) -> MultiScaleOutput:
        self._check_images(images)
        features = torch.cat([encoder(images).float() for encoder in self.encoders.values()], dim=1)
        return self.quantizer(features, dropped_scale=dropped_scale)

    def _decode(self, quantized: Tensor) -> tuple[Tensor | None, Tensor | None]:
        reconstruction = tokens = None
        if self.semantic_decoder is not None:
            tokens = self.semantic_decoder(self._read(quantized, self.config.semantic_decoder.reads)).float()
        if self.pixel_decoder is not None:
            reconstruction = self.pixel_decoder(self._read(quantized, self.config.pixel_decoder.reads)).float()
        return reconstruction, tokens

    def _read(self, quantized: Tensor, reads: tuple[str, ...]) -> Tensor:
        return torch.cat([quantized[:, channels] for channels in self.config.channels_of(reads)], dim=1)

    def _check_images(self, images: Tensor) -> None:
        size = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"images must be [B, 3, {size}, {size}]; got {tuple(images.shape)}. Resize and crop them to image_size."
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [-1, 1]; got {images.dtype}. Use images / 127.5 - 1.")

    def _check_range(self, images: Tensor) -> None:
        # Not in training's forward: looking at values makes a GPU wait.
        if images.is_floating_point() and images.numel() and images.detach().abs().amax() > PIXEL_LIMIT:
            raise ValueError(
                f"images must be in about [-1, 1]; got values up to {images.detach().abs().amax().item():.4g}. "
                "Use images / 127.5 - 1 for 0..255."
            )

    def _check_codes(self, codes: Tensor) -> Tensor:
        if codes.ndim != 2 or codes.dtype != torch.int64:
            raise ValueError(
                f"codes must be int64 [B, L] with L at most {self.config.num_tokens}; got {codes.dtype} "
                f"{tuple(codes.shape)}. Use codes.long() and one row an image."
            )
        return codes

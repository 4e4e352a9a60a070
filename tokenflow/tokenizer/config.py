"""What a tokenizer is made of, as data. Every preset of `presets.py` is a value of `TokenizerConfig`.

Quirks of the authors' released models are fields here, so that the model code has no special cases.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.nn.conv_resnet import ConvResnetConfig
from tokenflow.nn.vision_transformer import VisionTransformerConfig

EncoderKind = Literal["clip", "vitamin", "siglip", "open_clip", "convolutional"]
Normalization = Literal["none", "clip"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One encoder: how it reads pixels, its sizes, where its first weights come from."""

    kind: EncoderKind
    """Family; it names the library a pretrained source is read with."""
    vision: VisionTransformerConfig | None = None
    """Sizes of a vision transformer (every kind but `convolutional`)."""
    convolutional: ConvResnetConfig | None = None
    """Sizes of a convolutional encoder (kind `convolutional`)."""
    pretrained: str | None = None
    """First weights: None or "random", else a tag or hub id that the kind's library knows, or a local path."""
    input_size: int | None = None
    """Pixels on a side at which this encoder reads the image (bicubic resize); None: the image size."""
    clamp: bool = False
    """Clamp pixels to [-1, 1] first (the authors' SigLIP and ViTamin towers)."""
    normalization: Normalization = "none"
    """`clip`: CLIP's mean and deviation on clamped pixels. The authors' CLIP tower reads [-1, 1] as it is."""

    def __post_init__(self) -> None:
        wanted = "convolutional" if self.kind == "convolutional" else "vision"
        other = "vision" if wanted == "convolutional" else "convolutional"
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"an encoder of kind {self.kind!r} takes `{wanted}` sizes and no `{other}` sizes.")
        if wanted == "convolutional" and self.is_pretrained:
            raise ValueError(
                f"a convolutional encoder has no pretrained source; got {self.pretrained!r}. Set it to null."
            )

    @property
    def is_pretrained(self) -> bool:
        """Whether first weights come from elsewhere."""
        return self.pretrained not in (None, "random")

    @property
    def reduction(self) -> int:
        """Pixels of the encoder's input a grid cell covers on each side."""
        if self.convolutional is not None:
            return self.convolutional.reduction
        return self.vision.stem.reduction if self.vision.stem is not None else self.vision.patch_size

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.convolutional.latent_channels if self.convolutional is not None else self.vision.width


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """One codebook and the encoder that feeds it (paper, section 3.2)."""

    name: str
    """Name decoders read it by, e.g. `semantic`, `pixel`."""
    encoder: EncoderConfig
    """The encoder."""
    code_width: int
    """Channels of this branch's codes (Table 11: semantic 32, pixel 8)."""
    weight: float = 1.0
    """Weight of this branch's distance in the shared argmin (w_dis of equation 2, for the pixel branch)."""


@dataclass(frozen=True, kw_only=True)
class SemanticDecoderConfig:
    """Codes to the teacher's features: a small transformer and a tanh head."""

    vision: VisionTransformerConfig
    """Sizes; patch_size 1, in_channels the code width it reads."""
    out_width: int
    """Channels of the teacher's target tokens."""
    reads: tuple[str, ...] = ("semantic",)
    """Branches whose code channels it reads."""


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Codes to pixels."""

    convolutional: ConvResnetConfig
    """Sizes."""
    reads: tuple[str, ...] = ("pixel",)
    """Branches whose code channels it reads (Table 5, row 1 reads the semantic ones)."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer: branches, quantiser, decoders."""

    image_size: int
    """Pixels on a side."""
    codebook_size: int
    """Entries of the index space that all codebooks share."""
    scales: tuple[int, ...]
    """Sides of the residual scales, increasing, the last being the grid; one entry: no multi-scale quantisation."""
    branches: tuple[BranchConfig, ...]
    """Codebooks and their encoders; in concatenated features they keep this order, semantic first."""
    semantic_decoder: SemanticDecoderConfig | None = None
    """Distils the teacher; None: no semantic loss."""
    pixel_decoder: PixelDecoderConfig | None = None
    """Reconstructs the image; None: no reconstruction."""
    commitment_weight: float = 0.25
    """Beta of the commitment loss (Table 11)."""
    entropy_weight: float = 0.0
    """Weight of the optional entropy term."""

    def __post_init__(self) -> None:
        _check_scales(self.scales)
        names = [branch.name for branch in self.branches]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"branches must be a non-empty list of distinct names; got {names}.")
        for branch in self.branches:
            size = branch.encoder.input_size or self.image_size
            if size // branch.encoder.reduction != self.scales[-1]:
                raise ValueError(
                    f"scales must end at {size // branch.encoder.reduction}, the grid of branch {branch.name!r} "
                    f"({size} pixels / {branch.encoder.reduction}); got {self.scales}. Fix scales or image_size."
                )
        for decoder in (self.semantic_decoder, self.pixel_decoder):
            missing = set(decoder.reads) - set(names) if decoder is not None else set()
            if missing:
                raise ValueError(f"a decoder reads {sorted(missing)}, but the branches are {names}. Fix reads.")
        if self.semantic_decoder is not None:
            width = self.width_of(self.semantic_decoder.reads)
            if self.semantic_decoder.vision.in_channels != width or self.semantic_decoder.vision.patch_size != 1:
                raise ValueError(
                    f"the semantic decoder must have in_channels {width} (the code width it reads) and patch_size 1; "
                    f"got {self.semantic_decoder.vision.in_channels} and {self.semantic_decoder.vision.patch_size}."
                )

    @property
    def grid(self) -> int:
        """Side of the token grid."""
        return self.scales[-1]

    @property
    def num_tokens(self) -> int:
        """Codes an image."""
        return sum(scale**2 for scale in self.scales)

    @property
    def code_widths(self) -> tuple[int, ...]:
        """Code channels of each branch."""
        return tuple(branch.code_width for branch in self.branches)

    def width_of(self, reads: tuple[str, ...]) -> int:
        """Code channels of some branches together."""
        return sum(branch.code_width for branch in self.branches if branch.name in reads)

    def channels_of(self, reads: tuple[str, ...]) -> tuple[slice, ...]:
        """Where the channels of some branches lie in the concatenated codes, in the order of the branches."""
        slices, start = [], 0
        for branch in self.branches:
            if branch.name in reads:
                slices.append(slice(start, start + branch.code_width))
            start += branch.code_width
        return tuple(slices)

    def with_pretrained(self, source: str | None) -> TokenizerConfig:
        """The same tokenizer with another `pretrained` source for the semantic encoders."""
        branches = tuple(
            branch
            if branch.encoder.kind == "convolutional"
            else dataclasses.replace(branch, encoder=dataclasses.replace(branch.encoder, pretrained=source))
            for branch in self.branches
        )
        return dataclasses.replace(self, branches=branches)


def _check_scales(scales: tuple[int, ...]) -> None:
    if not scales or scales[0] < 1 or any(a >= b for a, b in itertools.pairwise(scales)):
        raise ValueError(f"scales must be positive and increase; got {tuple(scales)}. Fix scales.")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON-able dictionaries and lists."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """The inverse of `to_dict`: builds nested dataclasses; an unknown or missing key is a ValueError."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = set(values) - set(fields)
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = required - set(values)
    if unknown or missing:
        raise ValueError(
            f"{cls.__name__}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}; it has {sorted(fields)}."
        )
    return cls(**{name: _convert(hints[name], value) for name, value in values.items()})


def _convert(hint: Any, value: Any) -> Any:
    """One field of `from_dict`: dataclasses, Optional and tuples of them; anything else as it is."""
    if value is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item) for item in value)
        return tuple(_convert(a, item) for a, item in zip(arguments, value, strict=True))
    return from_dict(hint, value) if dataclasses.is_dataclass(hint) else value

"""What a multimodal model is: the language model, how it sees an image, how it is spoken to."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from tokenflow.language.config import LanguageConfig
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.teachers import TeacherConfig

Features = Literal["last_scale", "all_scales", "residuals", "semantic", "teacher"]
TemplateName = Literal["plain", "vicuna_v1", "qwen_2_5"]
Aspect = Literal["pad", "crop", "stretch"]
Rotary = Literal["sequence", "grid"]
_PROJECTOR = re.compile(r"mlp([1-9]\d*)x_gelu")


@dataclass(frozen=True, kw_only=True)
class UnderstandingConfig:
    """A causal language model that reads images as features of an image tokenizer (paper, section 3.4)."""

    language: LanguageConfig
    """The language model, pre-norm as pretrained; its head has weights of its own."""
    image_size: int
    """Pixels on a side of the images that the image tokenizer reads."""
    image_tokens: int
    """Positions that an image takes."""
    feature_width: int
    """Channels of a feature."""
    features: Features = "last_scale"
    """What stands for an image (Table 8): `last_scale`, the sum of all scales on the full grid; `all_scales`;
    `residuals` of all scales; `semantic`, that half of `last_scale`; `teacher`, continuous features (Table 9)."""
    projector: str = "mlp2x_gelu"
    """From a feature to an embedding: `linear`, or `mlpNx_gelu` with N linear layers."""
    merge: int = 1
    """Neighbouring features on a side that the projector reads beside one another and that become one position, as in
    Qwen2-VL and InternVL: 2 makes an image take a quarter of the positions. 1 is the paper's."""
    neighbourhood: int = 1
    """Features on a side, odd, that the projector reads around each place, as Honeybee's and MobileVLM's convolutional
    projectors do: 3 shows it a feature among its eight neighbours (merged ones, where features are merged), zeros
    beyond the border. 1 is the paper's."""
    whiten: bool = False
    """Whether features pass a frozen linear layer that makes their channels uncorrelated and equally strong over the
    training pictures (ZCA whitening). A few directions of a small tokenizer's codes hold nearly all their variance, and
    a projector hears the others late. False is the paper's."""
    coordinates: int = 0
    """How many sines and cosines of its column, and of its row, the projector reads beside a feature. 0 is the paper's:
    a large language model learns places from the order of the features, a small one takes long to."""
    rotary: Rotary = "sequence"
    """Positions of an image's features for the rotation: `sequence`, one after the other as they are read, the paper's;
    or `grid`, each feature's row and column, which take turns over the frequencies (M-RoPE of Qwen2-VL and Qwen3-VL):
    neighbours on either axis are equally near. Text has the same positions either way."""
    template: TemplateName = "vicuna_v1"
    """How a conversation is written."""
    system: str | None = None
    """The system message; None: the template's own; empty: none."""
    aspect: Aspect = "pad"
    """How an image becomes square: `pad` with grey, `crop` the centre, or `stretch`."""
    max_length: int = 2048
    """Positions of a training row, image features included; what lies behind is cut off."""

    def __post_init__(self) -> None:
        for name in ("image_size", "image_tokens", "feature_width", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        for name, choices in (
            ("features", Features),
            ("rotary", Rotary),
            ("template", TemplateName),
            ("aspect", Aspect),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}.")
        projector_layers(self.projector)
        merged_tokens(self.features_per_image, merge=self.merge, features=self.features)
        on_grid = math.isqrt(self.image_tokens) ** 2 == self.image_tokens
        around = self.neighbourhood
        if around < 1 or around % 2 == 0 or (around > 1 and not on_grid):
            raise ValueError(
                f"neighbourhood is {around} and an image takes {self.image_tokens} positions ({self.features}); "
                "expected an odd number, and 1 where positions are no square grid. Set it to 1."
            )
        if self.coordinates < 0 or (self.coordinates and not on_grid):
            raise ValueError(
                f"coordinates is {self.coordinates} and an image takes {self.image_tokens} positions "
                f"({self.features}); expected 0 or more, and 0 where the positions are no square grid. Set it to 0."
            )
        if self.rotary == "grid" and not on_grid:
            raise ValueError(
                f"rotary is 'grid' and an image takes {self.image_tokens} positions ({self.features}); expected "
                "'sequence' where the positions are no square grid."
            )
        if self.language.tie_embeddings:
            raise ValueError(
                "language.tie_embeddings is true; the head of a multimodal model has weights of its own, which begin "
                "as the table's. Set it to false (backbone_config does)."
            )
        if self.image_tokens >= self.max_length:
            raise ValueError(
                f"an image takes {self.image_tokens} positions and max_length is {self.max_length}; no text would be "
                "left. Raise max_length."
            )
        if self.language.max_positions < self.max_length:
            raise ValueError(
                f"max_length is {self.max_length} and language.max_positions {self.language.max_positions}. Shorten "
                "max_length."
            )

    @property
    def projector_width(self) -> int:
        """Channels that the projector reads: of the features that it sees at a place, and of its coordinates."""
        return self.feature_width * (self.merge * self.neighbourhood) ** 2 + 4 * self.coordinates

    @property
    def features_per_image(self) -> int:
        """Features of an image; `merge` squared of them share a position."""
        return self.image_tokens * self.merge**2


def projector_layers(name: str) -> int:
    """Linear layers of a projector; ValueError for a name that is none."""
    if name == "linear":
        return 1
    match = _PROJECTOR.fullmatch(name)
    if match is None:
        raise ValueError(f"projector is {name!r}; expected linear, or mlpNx_gelu such as mlp2x_gelu.")
    return int(match[1])


def feature_shape(tower: TokenizerConfig | TeacherConfig, features: Features = "last_scale") -> tuple[int, int]:
    """(positions an image takes, channels) of a tower's features; a teacher's are those of its own patches."""
    if features == "teacher":
        if not isinstance(tower, TeacherConfig):
            raise ValueError("features are 'teacher' and the tower is a tokenizer; pass the teacher's configuration.")
        if tower.vision.position_grid is None:
            raise ValueError("this teacher has no fixed grid; its number of tokens depends on image_size. Set both.")
        return tower.vision.position_grid**2, tower.width
    if not isinstance(tower, TokenizerConfig):
        raise ValueError(f"features are {features!r} and the tower is a teacher; pass the tokenizer's configuration.")
    width = sum(tower.code_widths)
    if features in ("all_scales", "residuals"):
        return tower.num_tokens, width
    return tower.grid**2, width if features == "last_scale" else tower.code_widths[0]


def merged_tokens(tokens: int, *, merge: int, features: Features = "last_scale") -> int:
    """Positions of an image with `tokens` features; ValueError where they cannot be merged."""
    if merge < 1:
        raise ValueError(f"merge is {merge}; expected 1 or more.")
    side = math.isqrt(tokens)
    if merge > 1 and (features in ("all_scales", "residuals") or side**2 != tokens or side % merge):
        raise ValueError(
            f"merge is {merge} and an image has {tokens} features ({features}); expected a square grid whose side it "
            "divides. Set it to 1."
        )
    return tokens // merge**2


def for_tower(
    config: UnderstandingConfig, tower: TokenizerConfig | TeacherConfig, *, features: Features | None = None
) -> UnderstandingConfig:
    """The same model on another image tokenizer (or teacher), perhaps with other features."""
    features = config.features if features is None else features
    tokens, width = feature_shape(tower, features)
    return dataclasses.replace(
        config,
        image_size=image_size(tower),
        image_tokens=merged_tokens(tokens, merge=config.merge, features=features),
        feature_width=width,
        features=features,
    )


def image_size(tower: TokenizerConfig | TeacherConfig) -> int:
    """Pixels on a side that a tower reads."""
    if isinstance(tower, TokenizerConfig):
        return tower.image_size
    if tower.vision.position_grid is None:
        raise ValueError("this teacher has no fixed grid and reads any image_size. Set image_size and image_tokens.")
    return tower.vision.position_grid * tower.vision.patch_size


def check_tower(config: UnderstandingConfig, tower: TokenizerConfig | TeacherConfig, *, model: str, name: str) -> None:
    """ValueError where an image tokenizer (or teacher) is not the one a model sees with; it names both and both values.

    Args:
        config: The model's.
        tower: The image tokenizer's, or the teacher's.
        model: What the model is called.
        name: What the tower is called, such as its folder.
    """
    found = for_tower(config, tower)
    for field in ("image_size", "image_tokens", "feature_width"):
        if getattr(found, field) != getattr(config, field):
            raise ValueError(
                f"the multimodal model {model} expects {field} {getattr(config, field)} ({config.features}) and the "
                f"image tokenizer {name} has {getattr(found, field)}. Use the tokenizer that it was trained with; for "
                f"a new model, set {field}."
            )

"""What every captioning backend takes and gives."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from tokenflow.data.samples import BadSample
from tokenflow.data.transforms import decode_image

_MAX_ASPECT = 200


class CaptionerUnusable(ValueError):
    """The backend cannot caption anything as it is set up; says value, expected, remedy."""


class CaptionerGone(Exception):
    """The backend fails for one sample after the other; what it failed for is not noted, so a later run asks again."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How a model is asked."""

    max_tokens: int = 512
    """Of an answer; one that reaches the limit is rejected."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    max_pixels: int = 1024 * 1024
    """Larger pictures are shown at this size; what is stored stays as it is."""

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("max_pixels", 32 * 32)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature is {self.temperature}; expected 0 to 2")


@dataclass(frozen=True, kw_only=True)
class CaptionRequest:
    """A picture to caption."""

    position: int
    """In its shard."""
    key: str
    image: bytes
    """As stored."""
    prompt: str
    """The question, with the old caption filled in."""


@dataclass(frozen=True, kw_only=True)
class CaptionAnswer:
    """What a model said to one request, or why it said nothing."""

    position: int
    key: str
    text: str = ""
    cut: bool = False
    """The limit of tokens ended it."""
    failure: Literal["", "bad_picture", "failed"] = ""
    """bad_picture: the picture cannot be shown; failed: no answer, whatever was tried."""
    detail: str = ""
    """Of a failure."""


class Captioner(Protocol):
    """A model that captions pictures."""

    def answers(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionAnswer]:
        """One answer a request, in any order; takes requests only as it can work on them.

        Raises CaptionerUnusable when no request can ever succeed.
        """


def open_picture(content: bytes, *, max_pixels: int) -> Image.Image:
    """The picture as a model should see it: RGB, upright, of `max_pixels` at most. Raises BadSample."""
    image = decode_image(content)
    width, height = image.size
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise BadSample(f"{width}x{height} is longer than {_MAX_ASPECT} times its breadth, which Qwen-VL cannot read")
    scale = math.sqrt(max_pixels / (width * height))
    if scale >= 1:
        return image
    size = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)

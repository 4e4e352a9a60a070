"""One picture on its way into a data set: verified by decoding it whole, filtered, resized, converted.

What training would read without any special handling keeps its bytes: 8 bits, RGB, grey or palette, one frame, upright,
no alpha, no larger than asked. Everything else is decoded as training decodes it (`transforms.decode_image`) and
encoded again.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image, UnidentifiedImageError

from tokenflow.data.duplicates import gradient_hash, pixel_hash
from tokenflow.data.samples import BadSample
from tokenflow.data.transforms import MAX_PIXELS, decode_image

PictureFormat = Literal["keep", "jpg", "png", "webp"]
_PLAIN_MODES = ("RGB", "L", "P", "1")
# MPO is a JPEG with more pictures behind it (phones): all readers see the first
_KINDS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODERS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_COMPRESSION_OF_PNG = 6


class BadPicture(BadSample):
    """A picture that is left out; `reason` is the code under which the report counts it."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """What pictures must be and become."""

    format: PictureFormat = "keep"
    """keep stores bytes as they are where training reads them without special handling, whatever their format, and
    others in their own format (what is neither JPEG nor WebP, as PNG); jpg, png, webp convert what is in another."""
    quality: int = 95
    """Of JPEG and WebP, where a picture is encoded anew."""
    short_side: int | None = None
    """Larger pictures are resized to this short side, in pixels; smaller ones stay as they are."""
    min_side: int = 1
    """Pictures with a shorter short side are left out, in pixels."""
    max_aspect: float | None = None
    """Pictures whose long side is more than so many times the short one are left out."""
    max_pixels: int = MAX_PIXELS
    """Pictures with more pixels are left out before they are decoded: decompression bombs."""

    def __post_init__(self) -> None:
        if self.format not in ("keep", *_ENCODERS):
            raise ValueError(f"format is {self.format!r}; expected keep, jpg, png or webp")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; expected 1 to 100")
        if self.short_side is not None and self.short_side < 8:
            raise ValueError(f"short_side is {self.short_side}; expected at least 8 pixels")
        if self.min_side < 1:
            raise ValueError(f"min_side is {self.min_side}; expected at least 1 pixel")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"max_aspect is {self.max_aspect}, the long side over the short one; expected at least 1")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"max_pixels is {self.max_pixels}; expected 1 to {MAX_PIXELS}, where training stops too")


@dataclass(frozen=True, kw_only=True)
class CheckedPicture:
    """A picture as it will be stored."""

    content: bytes
    extension: str
    """jpg, png or webp."""
    width: int
    height: int
    scale: float
    """Of the stored picture to what was read; below 1 where it was resized."""
    pixels: bytes
    """`pixel_hash` of what was read, before the resize."""
    gradients: int | None
    """`gradient_hash` of the same; None where it was not asked for or makes no sense."""
    sha256: str
    """Of `content`."""
    changes: tuple[str, ...]
    """What was done to it, by codes: cmyk, 16-bit, animated, rotated, alpha, resized, converted."""


def check_picture(content: bytes, *, config: PictureConfig, gradients: bool = False) -> CheckedPicture:
    """Verify a picture and make it what `config` asks for; `gradients` says whether to hash those too.

    Raises BadPicture: empty, truncated, corrupt, not_a_picture, bomb, float_pixels, too_small, too_narrow.
    """
    header = _open(content)
    _filter(header, config=config)
    kind = _KINDS.get(header.format or "")
    original, changes = _decode(content, header)
    image = original
    size = _smaller(image.size, config.short_side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
        changes.append("resized")
    extension = config.format if config.format != "keep" else kind or "png"
    stored = content
    if changes or kind != extension:
        stored = _encode(image, extension, quality=config.quality)
        if kind != extension:
            changes.append("converted")
    return CheckedPicture(
        content=stored,
        extension=extension,
        width=image.width,
        height=image.height,
        scale=image.width / original.width,
        pixels=pixel_hash(original),
        gradients=gradient_hash(original) if gradients else None,
        sha256=hashlib.sha256(stored).hexdigest(),
        changes=tuple(changes),
    )


def _open(content: bytes) -> Image.Image:
    """The header alone, and what can be told from it."""
    if not content:
        raise BadPicture("empty", "the picture has zero bytes")
    if content[:4] == b"RIFF" and int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise BadPicture("truncated", f"its header promises more than its {len(content)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise BadPicture("bomb", f"{error}") from error
    except UnidentifiedImageError as error:
        raise BadPicture(
            "not_a_picture", f"its first bytes {content[:8]!r} are of no known format, or nothing follows them"
        ) from error
    except Exception as error:
        # decoders of damaged files raise nearly anything
        raise BadPicture(_broken(str(error)), f"its header: {type(error).__name__}: {error}") from error
    return image


def _filter(image: Image.Image, *, config: PictureConfig) -> None:
    width, height = image.size
    if width * height > config.max_pixels:
        raise BadPicture("bomb", f"{width}x{height} has more than {config.max_pixels} pixels: a decompression bomb?")
    if min(width, height) < config.min_side:
        raise BadPicture("too_small", f"{width}x{height}, with a side below {config.min_side}")
    if config.max_aspect is not None and max(width, height) > config.max_aspect * min(width, height):
        raise BadPicture("too_narrow", f"{width}x{height}, with an aspect beyond {config.max_aspect:g}")


def _special(image: Image.Image, content: bytes) -> list[str]:
    """Codes of what training would have to mend each time it reads the picture."""
    found = []
    if image.mode == "CMYK":
        found.append("cmyk")
    if image.mode.startswith("I") or _bits(image, content) > 8:
        found.append("16-bit")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        found.append("animated")
    # for a PNG without that chunk, Pillow would decode all of it to look for one
    if (image.format != "PNG" or b"eXIf" in content) and image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        found.append("rotated")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        found.append("alpha")
    if not found and image.mode not in _PLAIN_MODES:
        found.append("converted")
    return found


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits a channel; Pillow itself cuts 16-bit RGB to 8 without a word."""
    if image.format == "PNG":
        # the byte after width and height in the IHDR chunk, which is always the first
        return content[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    return 8


def _decode(content: bytes, header: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture as training would see it, and what makes it special."""
    try:
        if header.format == "PNG":
            # checksums of all chunks, which decoding does not look at
            Image.open(io.BytesIO(content)).verify()
        return decode_image(content), _special(header, content)
    except MemoryError as error:
        raise BadPicture("out_of_memory", f"no memory for its {header.width}x{header.height} pixels") from error
    except BadSample as error:
        reason = "float_pixels" if header.mode == "F" else _broken(str(error))
        raise BadPicture(reason, str(error)) from error
    except Exception as error:
        # as above: what verify() raises depends on the damage
        raise BadPicture(_broken(str(error)), f"{type(error).__name__}: {error}") from error


def _broken(message: str) -> str:
    # Pillow has no other way to tell the two apart
    return "truncated" if "truncated" in message.lower() else "corrupt"


def _smaller(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    if short_side is None or min(size) <= short_side:
        return size
    scale = short_side / min(size)
    width, height = (max(short_side, round(side * scale)) for side in size)
    return width, height


def _encode(image: Image.Image, extension: str, *, quality: int) -> bytes:
    """Without metadata: that of the file spoke of other pixels."""
    stream = io.BytesIO()
    options = {"compress_level": _COMPRESSION_OF_PNG} if extension == "png" else {"quality": quality}
    # colour at full resolution at high quality: what a tokenizer is to learn are edges too
    if extension == "jpg" and quality >= 90:
        options["subsampling"] = 0
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    clean.save(stream, format=_ENCODERS[extension], **options)
    return stream.getvalue()

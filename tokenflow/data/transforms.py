"""From bytes to a square picture: decoding of whatever people have, crops, flips, and the [-1, 1] convention.

The centre crop is that of ADM (halve with a box filter while the short side is at least twice the target, one bicubic
resize, integer crop), which the authors' evaluation uses.
"""

import io
import random
import warnings
from math import ceil

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from tokenflow.data.samples import BadSample

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused as decompression bombs (the limit at which Pillow raises)."""
_COPIED_PIXELS = 1 << 24
"""Larger pictures are not copied only to be halved faster."""


def decode_image(content: bytes) -> Image.Image:
    """Decode a picture to RGB: EXIF rotation applied, alpha laid on white, 16 bits cut to 8, the first frame of many.

    Raises BadSample when the bytes are no picture, are truncated, or would decode to more than MAX_PIXELS pixels.
    """
    if not content:
        raise BadSample("the picture has zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise BadSample(f"{image.width}x{image.height} has more than {MAX_PIXELS} pixels: a decompression bomb?")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except (BadSample, MemoryError):
        raise
    except UnidentifiedImageError as error:
        # Pillow's own words hold an address in memory, and a report should read the same every time
        raise BadSample(
            f"the picture cannot be decoded: its first bytes {content[:8]!r} are of no known format"
        ) from error
    except Exception as error:
        # decoders of damaged files raise nearly anything: OSError, SyntaxError, ValueError, struct.error, IndexError
        raise BadSample(f"the picture cannot be decoded: {type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise BadSample("the picture has floating-point pixels, whose range is unknown; convert it to 8 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _halve(image: Image.Image) -> Image.Image:
    """What Pillow's box filter gives at half the width and height, to the bit, in 0.3 of its time where sides are even.

    It averages pairs of columns, rounds half up, then does the same with rows. A pixel is four bytes here.
    """
    width, height = image.size
    # Pillow 13 does rows first where there are far more rows than columns
    if width * height > _COPIED_PIXELS or height > 1.5 * width:
        return image.resize((width // 2, height // 2), Image.Resampling.BOX)
    if width % 2:
        image = image.resize((width // 2, height), Image.Resampling.BOX)
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).reshape(height, image.width)
    if width % 2 == 0:
        pixels = _mean_of_bytes(pixels[:, 0::2], pixels[:, 1::2])
    if height % 2 == 0:
        pixels = _mean_of_bytes(pixels[0::2], pixels[1::2])
    halved = Image.frombytes("RGB", pixels.shape[::-1], pixels, "raw", "RGBX")
    return halved.resize((halved.width, height // 2), Image.Resampling.BOX) if height % 2 else halved


def _mean_of_bytes(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(left + right + 1) // 2 in each of the four bytes of uint32."""
    lost = left ^ right
    lost >>= 1
    lost &= np.uint32(0x7F7F7F7F)
    mean = left | right
    mean -= lost
    return mean


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Resize so that the short side is `short_side`: box halvings, then one bicubic step."""
    while min(image.size) >= 2 * short_side:
        image = _halve(image)
    scale = short_side / min(image.size)
    size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The ADM centre crop of an RGB picture, `size` x `size`."""
    image = _shrink(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, *, rng: random.Random, min_fraction: float = 0.8) -> Image.Image:
    """A random square of an RGB picture with at least `min_fraction` of its short side, resized to `size` x `size`."""
    short_side = rng.randint(size, ceil(size / min_fraction))
    image = _shrink(image, short_side)
    left, top = rng.randint(0, image.width - size), rng.randint(0, image.height - size)
    return image.crop((left, top, left + size, top + size))


def to_array(image: Image.Image) -> np.ndarray:
    """RGB picture -> uint8 [H, W, 3]."""
    return np.array(image, dtype=np.uint8)


def to_planes(image: Image.Image) -> np.ndarray:
    """RGB picture -> uint8 [3, H, W], as fast as `to_array`."""
    planes = np.empty((3, image.height, image.width), np.uint8)
    for band, plane in zip("RGB", planes, strict=True):
        plane[:] = np.frombuffer(image.tobytes("raw", band), np.uint8).reshape(plane.shape)
    return planes


def to_tensor(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return to_unit_range(pixels.permute(0, 3, 1, 2))


def to_unit_range(levels: torch.Tensor, *, pinned: bool = False) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1], contiguous; in page-locked memory if asked, which needs a GPU."""
    floats = torch.empty(levels.shape, dtype=torch.float32, pin_memory=pinned)
    # numpy, a picture at a time: it stays in the cache, and torch's threads would wait for those that decode
    for to, source in zip(floats.numpy(), levels.numpy(), strict=True):
        # bit for bit (levels / 255 - 0.5) / 0.5: a factor of two moves through a rounding
        np.divide(source, np.float32(127.5), out=to)
        np.subtract(to, np.float32(1), out=to)
    return floats


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], rounded to the nearest level and clamped."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

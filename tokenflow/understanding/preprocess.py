"""Pictures to what the image tokenizer reads: made square, resized, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tokenflow.data.samples import BadSample
from tokenflow.data.transforms import center_crop, decode_image, to_array, to_tensor
from tokenflow.understanding.config import Aspect

GREY = (127, 127, 127)
"""What `pad` fills with: the middle of SigLIP's range, cut to whole numbers."""
Picture = Image.Image | str | Path | Float[Tensor, "3 S S"]
"""A PIL picture, the path of one, or a tensor in [-1, 1] that has its size already."""


def make_square(picture: Image.Image, *, size: int, aspect: Aspect) -> Image.Image:
    """An RGB picture, `size` x `size`.

    `pad`: laid in the middle of a grey square, then one bicubic resize (LLaVA's fine-tuning); `stretch`: that resize
    alone (its pretraining); `crop`: the centre, as the tokenizer's training sees it.
    """
    if aspect == "crop":
        return center_crop(picture, size)
    if aspect == "pad" and picture.width != picture.height:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), GREY)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BICUBIC)


def read_picture(picture: Picture, *, size: int, aspect: Aspect) -> Float[Tensor, "3 S S"]:
    """One picture as the image tokenizer reads it.

    Raises:
        ValueError: An address, a file that is no picture, or a tensor of another shape.
        OSError: There is no such file.
    """
    if isinstance(picture, Tensor):
        if tuple(picture.shape) != (3, size, size) or not picture.is_floating_point():
            raise ValueError(
                f"an image is {picture.dtype} {tuple(picture.shape)}; expected floating point (3, {size}, {size}) in "
                "[-1, 1], a PIL picture or a path."
            )
        return picture.float()
    if isinstance(picture, str | Path):
        if str(picture).lower().startswith(("http://", "https://", "ftp://")):
            raise ValueError(
                f"{picture} is an address, and nothing is fetched from the net. Save it and pass the file."
            )
        picture = _open(Path(picture))
    pixels = to_array(make_square(picture.convert("RGB"), size=size, aspect=aspect))
    return to_tensor(torch.from_numpy(pixels)[None])[0]


def _open(path: Path) -> Image.Image:
    try:
        return decode_image(path.read_bytes())
    except BadSample as error:
        raise ValueError(f"{path}: {error}. Give a picture.") from error


def read_pictures(pictures: Sequence[Picture], *, size: int, aspect: Aspect) -> Float[Tensor, "I 3 S S"]:
    """Pictures as one batch; no pictures are a batch of none."""
    if not pictures:
        return torch.zeros(0, 3, size, size)
    return torch.stack([read_picture(picture, size=size, aspect=aspect).cpu() for picture in pictures])

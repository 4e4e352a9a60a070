"""Real photographs without a download: those inside scikit-image and scikit-learn, as a folder of pictures.

They stand for "your own photographs" in the demo. Only files that the installed packages contain are read.
"""

import importlib.util
from pathlib import Path
from typing import Literal

from PIL import Image

from tokenflow.data.transforms import center_crop, decode_image

PHOTOGRAPHS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage/data/astronaut.png", "a photo of an astronaut"),
    "cat": ("skimage/data/chelsea.png", "a photo of a cat"),
    "coffee": ("skimage/data/coffee.png", "a photo of a cup of coffee"),
    "rocket": ("skimage/data/rocket.jpg", "a photo of a rocket"),
    "motorcycle": ("skimage/data/motorcycle_left.png", "a photo of a motorcycle in a garage"),
    "galaxies": ("skimage/data/hubble_deep_field.jpg", "a photo of galaxies"),
    "photographer": ("skimage/data/camera.png", "a black and white photo of a man with a camera"),
    "coins": ("skimage/data/coins.png", "a black and white photo of coins"),
    "temple": ("sklearn/datasets/images/china.jpg", "a photo of a temple"),
    "flower": ("sklearn/datasets/images/flower.jpg", "a photo of a flower"),
}
"""Name -> (file inside the package, caption)."""
HELD_OUT_PHOTOGRAPHS: tuple[str, ...] = ("coffee", "flower")
"""Photographs that the "train" split leaves out, for measuring."""
_FRACTIONS = (1.0, 0.7, 0.5)


def export_photographs(
    directory: str | Path, *, split: Literal["train", "heldout", "all"] = "all", image_size: int = 256
) -> list[Path]:
    """Cut the photographs into square tiles of up to `image_size` pixels, `NN-NAME.png` with a caption in
    `NN-NAME.txt`.

    Tiles are the whole height, 0.7 and 0.5 of it, on a regular grid. Returns the pictures' paths, about 15 a
    photograph. Raises ValueError when neither package is installed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (inside, caption) in PHOTOGRAPHS.items():
        path = package_file(inside)
        if path is None or (split != "all" and (name in HELD_OUT_PHOTOGRAPHS) != (split == "heldout")):
            continue
        for number, tile in enumerate(_tiles(decode_image(path.read_bytes()))):
            # The number first: a listing, and the report, then mixes the photographs.
            target = directory / f"{number:02d}-{name}.png"
            center_crop(tile, min(image_size, tile.width)).save(target)
            target.with_suffix(".txt").write_text(caption + "\n")
            written.append(target)
    if not written:
        raise ValueError(
            "no photographs found: scikit-image and scikit-learn are not installed. "
            "Install the extra: pip install -e '.[demo]', or give a folder of your own pictures."
        )
    return written


def photograph(name: str) -> Image.Image | None:
    """One of PHOTOGRAPHS, whole; None when the package that contains it is not installed."""
    path = package_file(PHOTOGRAPHS[name][0])
    return None if path is None else decode_image(path.read_bytes())


def package_file(inside: str) -> Path | None:
    """A file inside an installed package, as `skimage/data/cat.png`; None where it is not there."""
    package, _, rest = inside.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / rest
    return path if path.is_file() else None


def _tiles(image: Image.Image) -> list[Image.Image]:
    tiles = []
    for fraction in _FRACTIONS:
        side = int(min(image.size) * fraction)
        for top in _grid(image.height, side):
            for left in _grid(image.width, side):
                tiles.append(image.crop((left, top, left + side, top + side)))
    return tiles


def _grid(length: int, side: int) -> list[int]:
    """Starts of the fewest evenly spaced tiles that cover a length."""
    count = -(-length // side)
    return [0] if count == 1 else [round(k * (length - side) / (count - 1)) for k in range(count)]

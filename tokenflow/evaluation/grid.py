"""Picture grids: originals above reconstructions above their amplified difference."""

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

_PAPER = 255


def difference(original: Picture, reconstruction: Picture, *, amplification: float = 4.0) -> Picture:
    """Where two uint8 pictures [..., H, W, 3] differ: mid-grey is equal, the error is multiplied by `amplification`."""
    error = reconstruction.astype(np.float32) - original.astype(np.float32)
    return np.clip(np.round(127.5 + amplification * error), 0, 255).astype(np.uint8)


def reconstruction_grid(
    originals: Picture, reconstructions: Picture, *, columns: int = 8, amplification: float = 4.0, gap: int = 4
) -> Picture:
    """One uint8 picture from two sets [n, H, W, 3]: bands of original / reconstruction / difference rows.

    Tiny pictures are enlarged by a whole factor, pixel by pixel, to at least 64 pixels.
    """
    if originals.shape != reconstructions.shape or originals.ndim != 4 or not len(originals):
        raise ValueError(
            f"originals are {originals.shape} and reconstructions {reconstructions.shape}, expected equal "
            "[n, height, width, 3] with n >= 1"
        )
    rows: list[Picture] = []
    for start in range(0, len(originals), columns):
        chunk = slice(start, start + columns)
        rows += [
            originals[chunk],
            reconstructions[chunk],
            difference(originals[chunk], reconstructions[chunk], amplification=amplification),
        ]
    return tile(rows, columns=min(columns, len(originals)), gap=gap)


def tile(rows: list[Picture], *, columns: int, gap: int = 4) -> Picture:
    """Lay rows of equally sized pictures [n, H, W, 3] out on white; a short last row is left open."""
    height, width = rows[0].shape[1:3]
    factor = max(1, -(-64 // max(height, width)))
    cell_height, cell_width = height * factor + gap, width * factor + gap
    canvas = np.full((len(rows) * cell_height + gap, columns * cell_width + gap, 3), _PAPER, dtype=np.uint8)
    for row_index, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = gap + row_index * cell_height, gap + column * cell_width
            canvas[top : top + height * factor, left : left + width * factor] = enlarge(picture, factor)
    return canvas


def enlarge(picture: Picture, factor: int) -> Picture:
    """Repeat every pixel `factor` times in both directions."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)

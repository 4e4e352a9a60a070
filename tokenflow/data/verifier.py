"""Reads the objects of a built-in scene back from pixels, exactly: shape, colour, position, size and count.

Backgrounds are grey, so the part of a pixel that is off the grey axis is the object's share of that pixel times the
chroma of its colour, whatever the light. Connected regions of that share are objects; the hue names the colour, and the
shape is the template that overlaps the share best. A region that fits no colour or no shape is read as "unknown", which
no claim accepts: a smudge is an error, not a missing object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy import ndimage

from tokenflow.data.captions import Prompt
from tokenflow.data.shapes import COLOURS, SHAPES, Scene, SceneObject, coverage

UNKNOWN = "unknown"
_SUBPIXEL = 4
_MIN_SHARE = 0.42
"""Share of a pixel that counts as inside a region."""
_SPECK = 0.008
"""Regions under this share of the picture are noise."""
_MIN_OVERLAP = 0.90
"""Dice overlap with the best template; 0.98 and more on drawn scenes, 0.88 and less on half a shape or two merged."""
_MIN_PURITY = 0.85
"""Share of a region that has the region's hue."""
_MAX_HUE_ANGLE = 20.0
"""Degrees between a region's hue and the colour's."""
_RELATION_MARGIN = 0.1
"""Distance of centres, as a share of the picture, from which "left of" is true."""


@dataclass(frozen=True, kw_only=True)
class ReadObject:
    """An object found in a picture; positions and radius are fractions of the side, as in `SceneObject`."""

    shape: str
    """One of SHAPES, or "unknown"."""
    colour: str
    """One of COLOURS, or "unknown"."""
    x: float
    y: float
    radius: float
    overlap: float
    """Dice overlap with the shape's template, 0 to 1."""


def _chroma(colours: np.ndarray) -> np.ndarray:
    return colours - colours.mean(axis=-1, keepdims=True)


_PALETTE = _chroma(np.asarray(list(COLOURS.values()), dtype=np.float32))
_PALETTE_NORM = np.linalg.norm(_PALETTE, axis=1)
_PALETTE_UNIT = _PALETTE / _PALETTE_NORM[:, None]
_COLOUR_NAMES = tuple(COLOURS)


def read_objects(image: np.ndarray) -> list[ReadObject]:
    """Objects of a picture, uint8 [S, S, 3] with S >= 16, ordered from top to bottom, then left to right.

    Raises ValueError for another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected a square uint8 [S, S, 3] picture")
    size = image.shape[0]
    chroma = _chroma(image.astype(np.float32))
    # the share every pixel would have under each colour: its chroma projected on the colour's
    projections = chroma @ (_PALETTE_UNIT / _PALETTE_NORM[:, None]).T
    share = projections.max(axis=2)
    labels, number = ndimage.label(share > _MIN_SHARE)
    found = []
    for label, box in enumerate(ndimage.find_objects(labels, number), start=1):
        inside = labels[box] == label
        if inside.sum() < _SPECK * size * size:
            continue
        found.append(_read_region(chroma, projections, labels, label, box))
    return sorted(found, key=lambda item: (item.y, item.x))


def _read_region(
    chroma: np.ndarray, projections: np.ndarray, labels: np.ndarray, label: int, box: tuple[slice, slice]
) -> ReadObject:
    size = labels.shape[0]
    # the soft rim lies one pixel outside the thresholded region
    rows, columns = (slice(max(0, part.start - 1), min(size, part.stop + 1)) for part in box)
    here = labels[rows, columns]
    core = here == label
    rim = ndimage.binary_dilation(core, structure=np.ones((3, 3), dtype=bool)) & (core | (here == 0))
    colour = _read_colour(chroma[rows, columns][core])
    shares = projections[rows, columns]
    share = shares.max(axis=2) if colour == UNKNOWN else shares[:, :, _COLOUR_NAMES.index(colour)]
    window = np.clip(np.where(rim, share, 0) / np.quantile(share[core], 0.75), 0, 1)
    shape, overlap, x, y, radius = _read_shape(window, rows.start, columns.start, size)
    return ReadObject(
        shape=shape if overlap >= _MIN_OVERLAP else UNKNOWN, colour=colour, x=x, y=y, radius=radius, overlap=overlap
    )


def _read_colour(chroma: np.ndarray) -> str:
    """The colour of a region's pixels [N, 3], "unknown" when between two colours or of several."""
    mean = chroma.mean(axis=0)
    norm = np.linalg.norm(mean)
    cosines = _PALETTE_UNIT @ mean / max(norm, 1e-6)
    best = int(cosines.argmax())
    if cosines[best] < np.cos(np.deg2rad(_MAX_HUE_ANGLE)):
        return UNKNOWN
    weights = np.linalg.norm(chroma, axis=1)
    same = (chroma @ _PALETTE_UNIT.T).argmax(axis=1) == best
    return _COLOUR_NAMES[best] if (weights * same).sum() >= _MIN_PURITY * weights.sum() else UNKNOWN


def _read_shape(window: np.ndarray, top: int, left: int, size: int) -> tuple[str, float, float, float, float]:
    """(shape, overlap, x, y, radius) of the template that overlaps a share window [h, w] best."""
    area = float(window.sum())
    ys = np.arange(window.shape[0]) + 0.5
    xs = np.arange(window.shape[1]) + 0.5
    centre_y = float((window.sum(axis=1) * ys).sum()) / area + top
    centre_x = float((window.sum(axis=0) * xs).sum()) / area + left
    best = (UNKNOWN, 0.0, centre_x / size, centre_y / size, (area / np.pi) ** 0.5 / size)
    for shape in SHAPES:
        unit_area, offset_y = _moments(shape)
        radius = (area / unit_area) ** 0.5
        y = centre_y - offset_y * radius
        template = _template(shape, round(radius * 4))
        overlap = _overlap(window, template, centre_x - left, y - top)
        if overlap > best[1]:
            best = (shape, overlap, centre_x / size, y / size, radius / size)
    return best


_CANVAS = 128


@lru_cache
def _moments(shape: str) -> tuple[float, float]:
    """Area and vertical centre of mass of a shape of radius 1."""
    mask = coverage(SceneObject(shape=shape, colour="red", x=0.5, y=0.5, radius=0.25), _CANVAS)
    unit = 0.25 * _CANVAS
    rows = np.arange(_CANVAS) + 0.5 - 0.5 * _CANVAS
    return float(mask.sum()) / unit**2, float((mask.sum(axis=1) * rows).sum() / mask.sum()) / unit


@lru_cache(maxsize=4096)
def _template(shape: str, quarter_radius: int) -> np.ndarray:
    """Pixel coverage of a shape at every sub-pixel shift: [n, n] on a grid _SUBPIXEL times finer, centred."""
    radius = quarter_radius / 4
    half = int(np.ceil(1.3 * radius)) + 2
    side = 2 * half * _SUBPIXEL
    item = SceneObject(shape=shape, colour="red", x=0.5, y=0.5, radius=radius / (2 * half))
    fine = coverage(item, side)
    # the mean over a pixel's square at each fine position is what a pixel centred there would show
    return ndimage.uniform_filter(fine, size=_SUBPIXEL, mode="constant")


def _overlap(window: np.ndarray, template: np.ndarray, x: float, y: float) -> float:
    """Dice overlap 2ab / (aa + bb) of a window with a template centred at (x, y), in pixels.

    Squares make it blind to faint noise, which a soft intersection over union is not.
    """
    centre = template.shape[0] // 2
    rows = np.rint((np.arange(window.shape[0]) + 0.5 - y) * _SUBPIXEL).astype(int) + centre
    columns = np.rint((np.arange(window.shape[1]) + 0.5 - x) * _SUBPIXEL).astype(int) + centre
    limit = template.shape[0] - 1
    inside = ((rows >= 0) & (rows <= limit))[:, None] & ((columns >= 0) & (columns <= limit))[None, :]
    shown = np.where(inside, template[np.clip(rows, 0, limit)][:, np.clip(columns, 0, limit)], 0)
    return float(2 * (window * shown).sum() / (np.square(window).sum() + np.square(shown).sum()))


def matches(scene: Scene, image: np.ndarray, *, position_tolerance: float = 0.06) -> bool:
    """Whether a picture, uint8 [S, S, 3], holds exactly the scene's objects: shape, colour, count and place.

    `position_tolerance` is the largest distance of centres along either axis, as a share of the side (0.06 is two
    pixels at 32x32).
    """
    found = read_objects(image)
    if len(found) != len(scene.objects):
        return False
    return any(
        all(
            (item.shape, item.colour) == (wanted.shape, wanted.colour)
            and max(abs(item.x - wanted.x), abs(item.y - wanted.y)) <= position_tolerance
            for item, wanted in zip(order, scene.objects, strict=True)
        )
        for order in permutations(found)
    )


def check(prompt: Prompt, image: np.ndarray) -> bool:
    """Whether a picture, uint8 [S, S, 3], shows exactly what the prompt says, and nothing else."""
    return satisfies(prompt, read_objects(image))


def satisfies(prompt: Prompt, found: Sequence[ReadObject]) -> bool:
    """Whether objects read from a picture are exactly those of the prompt, related as it says."""
    if len(found) != len(prompt.objects):
        return False
    return any(
        all(
            item.shape == shape and item.colour != UNKNOWN and colour in (None, item.colour)
            for item, (shape, colour) in zip(order, prompt.objects, strict=True)
        )
        and _related(prompt.relation, order)
        for order in permutations(found)
    )


def _related(relation: str | None, found: Sequence[ReadObject]) -> bool:
    if relation is None:
        return True
    first, second = found[:2]
    dx, dy = first.x - second.x, first.y - second.y
    distance = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    return distance >= _RELATION_MARGIN

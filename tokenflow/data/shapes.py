"""The built-in world: scenes of one to three coloured shapes on a plain background, drawn at any size.

A scene is resolution-free (positions and radii are fractions of the picture's side) and is a function of (seed, split,
index) alone. Objects never touch, backgrounds are grey, hues are far apart and a shape is at least ten pixels wide at
32x32: that is what lets `tokenflow.data.verifier` read every object back from pixels.

Splits: "train" has no held-out (colour, shape) pair; "seen" has fresh scenes of training pairs; every "heldout" scene
contains at least one held-out pair.
"""

import random
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import cos, pi, sin
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "seen", "heldout"]
SceneKind = Literal["single", "pair", "group", "triple"]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 44),
    "yellow": (236, 206, 36),
    "green": (44, 168, 66),
    "cyan": (40, 204, 200),
    "blue": (44, 62, 218),
    "purple": (176, 48, 192),
}
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("red", "triangle"), ("yellow", "square"), ("green", "circle"), ("blue", "star"), ("purple", "cross")}
)
"""(colour, shape) pairs that no training scene contains; every shape and five of six colours occur once."""

SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)
_KIND_WEIGHTS = (0.3, 0.4, 0.2, 0.1)
_RADIUS = (0.165, 0.205)
_GAP = 0.07
# Few tones, so that codes are spent on the objects: of a smooth range, 70 % of a generator's loss was the background.
_BACKGROUNDS = (0.1, 0.2, 0.8, 0.9)
_LIGHTS = (0.9, 1.0)
_BORDER = 0.035
_RELATION_MARGIN = 0.12
_CORNER_MARGIN = 0.08
_CANVAS = 256


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One coloured shape. `x`, `y` (centre, from the top left) and `radius` are fractions of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    light: float = 1.0
    """Brightness the colour is multiplied with."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture before it is drawn."""

    kind: SceneKind
    objects: tuple[SceneObject, ...]
    background: float
    """Grey level, 0 to 1."""
    phrasing: int = 0
    """Chooses among the captions that fit."""

    def to_json(self) -> dict[str, Any]:
        """Plain types for a sample's .json member; `Scene.from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Scene":
        """The scene of a sample's .json member."""
        objects = tuple(SceneObject(**item) for item in record["objects"])
        return cls(**{**record, "objects": objects})


@lru_cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape of radius 1 around the origin, y down; a circle is a fine polygon.

    Raises ValueError for a shape that is not in SHAPES.
    """
    if shape == "circle":
        return tuple((cos(2 * pi * i / 72), sin(2 * pi * i / 72)) for i in range(72))
    if shape == "square":
        return ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
    if shape == "triangle":
        return ((0.0, -1.0), (1.0, 0.85), (-1.0, 0.85))
    if shape == "cross":
        long, arm = 1.0, 0.36
        quarter = [(arm, -long), (arm, -arm), (long, -arm)]
        turn = lambda p, k: ((p[0], p[1]), (-p[1], p[0]), (-p[0], -p[1]), (p[1], -p[0]))[k]  # noqa: E731
        return tuple(turn(p, k) for k in range(4) for p in quarter)
    if shape == "star":
        radii = (1.1, 0.46)
        return tuple((radii[i % 2] * sin(pi * i / 5), -radii[i % 2] * cos(pi * i / 5) + 0.08) for i in range(10))
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")


def coverage(item: SceneObject, image_size: int) -> np.ndarray:
    """Share of every pixel that the object covers: float32 [image_size, image_size] in [0, 1], anti-aliased."""
    factor = max(4, _CANVAS // image_size)
    side = image_size * factor
    canvas = Image.new("L", (side, side), 0)
    # PIL fills a polygon including its border pixels: half a pixel back keeps the area right
    corners = [
        ((item.x + item.radius * x) * side - 0.5, (item.y + item.radius * y) * side - 0.5)
        for x, y in outline(item.shape)
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return np.asarray(canvas.reduce(factor), dtype=np.float32) / 255


def draw(scene: Scene, image_size: int) -> np.ndarray:
    """Draw a scene: uint8 [image_size, image_size, 3]; ValueError below 16 pixels, where shapes blur together."""
    if image_size < 16:
        raise ValueError(f"image_size {image_size} cannot hold the shapes; expected at least 16, usually 32 or 64")
    picture = np.full((image_size, image_size, 3), 255 * scene.background, dtype=np.float32)
    for item in scene.objects:
        share = coverage(item, image_size)[:, :, None]
        picture += share * (item.light * np.asarray(COLOURS[item.colour], dtype=np.float32) - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Where `first` lies to `second`: "left of", "right of", "above" or "below"; None when it is not clear-cut."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) >= abs(dy) + _RELATION_MARGIN:
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= abs(dx) + _RELATION_MARGIN:
        return "above" if dy < 0 else "below"
    return None


def corner(item: SceneObject) -> str | None:
    """The quarter of the picture that holds an object's middle, as in "top left"; None when it is not clear-cut."""
    if min(abs(item.x - 0.5), abs(item.y - 0.5)) < _CORNER_MARGIN:
        return None
    return f"{'top' if item.y < 0.5 else 'bottom'} {'left' if item.x < 0.5 else 'right'}"


class SceneSampler:
    """An endless sequence of scenes: `SceneSampler(seed, split)[index]` depends on nothing but (seed, split, index)."""

    def __init__(self, seed: int, split: Split = "train"):
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(get_args(Split))}")
        self.seed = seed
        self.split = split
        pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        self._known = [pair for pair in pairs if pair not in HELD_OUT_PAIRS]
        self._heldout = [pair for pair in pairs if pair in HELD_OUT_PAIRS]

    def __getitem__(self, index: int) -> Scene:
        """Scene number `index` (0 or more)."""
        if index < 0:
            raise IndexError(f"scene index {index}; expected 0 or more")
        return self.scene(index)

    def scene(self, index: int, *, kind: SceneKind | None = None) -> Scene:
        """Scene number `index`, of one kind if given.

        Kinds: "single", "pair" (two shapes, two colours), "group" (equal objects), "triple" (three shapes and colours).
        """
        rng = random.Random(f"{self.seed}/{self.split}/{index}/{kind}")
        chosen: SceneKind = kind or rng.choices(SCENE_KINDS, _KIND_WEIGHTS)[0]
        pairs = self._pairs(rng, chosen)
        places = _layout(rng, len(pairs), clear_relation=chosen == "pair")
        objects = tuple(
            SceneObject(shape=shape, colour=colour, x=x, y=y, radius=radius, light=rng.choice(_LIGHTS))
            for (colour, shape), (x, y, radius) in zip(pairs, places, strict=True)
        )
        return Scene(
            kind=chosen,
            objects=objects,
            background=rng.choice(_BACKGROUNDS),
            phrasing=rng.randrange(1 << 16),
        )

    def _pairs(self, rng: random.Random, kind: SceneKind) -> list[tuple[str, str]]:
        first = rng.choice(self._heldout if self.split == "heldout" else self._known)
        if kind == "single":
            return [first]
        if kind == "group":
            return [first] * rng.choice((2, 3))
        chosen = [first]
        while len(chosen) < (2 if kind == "pair" else 3):
            taken = {word for pair in chosen for word in pair}
            chosen.append(rng.choice([pair for pair in self._known if not taken & set(pair)]))
        rng.shuffle(chosen)
        return chosen


def _layout(rng: random.Random, count: int, *, clear_relation: bool) -> list[tuple[float, float, float]]:
    """Places (x, y, radius) that touch neither one another nor the border; starts over when one finds no room."""
    largest = _RADIUS[1] if count < 3 else 0.19
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(40):
            radius = rng.uniform(_RADIUS[0], largest)
            low = 1.1 * radius + _BORDER
            x, y = rng.uniform(low, 1 - low), rng.uniform(low, 1 - low)
            if all(max(abs(x - a), abs(y - b)) >= 1.06 * (radius + r) + _GAP for a, b, r in places):
                places.append((round(x, 4), round(y, 4), round(radius, 4)))
            if len(places) == count:
                break
        if len(places) < count:
            continue
        if clear_relation:
            dx, dy = abs(places[0][0] - places[1][0]), abs(places[0][1] - places[1][1])
            if abs(dx - dy) < _RELATION_MARGIN:
                continue
        return places

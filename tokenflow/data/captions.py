"""What can be said about a scene: captions for training and prompts of GenEval's six kinds, both as checkable claims.

A `Prompt` is a text together with the exact contents it asks for, so that `tokenflow.data.verifier.check` can judge any
picture against it. A caption names every object of its scene; attributes it leaves out (a bare "a circle") are free.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal, get_args

from tokenflow.data.shapes import HELD_OUT_PAIRS, Scene, SceneKind, SceneSampler, Split, relation

PromptKind = Literal["single_object", "two_object", "counting", "colors", "position", "color_attribution"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
"""GenEval's six kinds, under its own names."""
HELD_OUT_KINDS: tuple[PromptKind, ...] = ("counting", "colors", "position", "color_attribution")
"""The kinds that name colours, so that "held out" means something for them."""

_NUMBERS = {2: "two", 3: "three"}
_OPENINGS = ("", "", "a photo of ", "a picture of ")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SCENE_OF_KIND: dict[str, SceneKind] = {
    "single_object": "single",
    "colors": "single",
    "two_object": "pair",
    "position": "pair",
    "color_attribution": "pair",
    "counting": "group",
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text and what a picture must contain to deserve it: exactly these objects and no others."""

    text: str
    kind: str
    """One of PROMPT_KINDS, or "three_objects" (captions only)."""
    objects: tuple[tuple[str, str | None], ...]
    """(shape, colour) of every object; a colour of None is free."""
    relation: str | None = None
    """How the first object lies to the second: "left of", "right of", "above", "below"."""

    @property
    def held_out(self) -> bool:
        """Whether it names a (colour, shape) pair that training never shows."""
        return any((colour, shape) in HELD_OUT_PAIRS for shape, colour in self.objects)


def _noun(shape: str, colour: str | None = None) -> str:
    return f"a {colour} {shape}" if colour else f"a {shape}"


def plural(shape: str) -> str:
    """Plural of a shape's name: "circle" -> "circles", "cross" -> "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


def captions(scene: Scene) -> list[Prompt]:
    """Every claim about the scene; the texts lack an opening ("a photo of")."""
    items = [(item.shape, item.colour) for item in scene.objects]
    bare = tuple((shape, None) for shape, _ in items)
    if scene.kind == "single":
        (shape, colour), full = items[0], tuple(items)
        return [
            Prompt(text=_noun(shape, colour), kind="colors", objects=full),
            Prompt(text=_noun(shape), kind="single_object", objects=bare),
        ]
    if scene.kind == "group":
        (shape, colour), number = items[0], _NUMBERS[len(items)]
        return [
            Prompt(text=f"{number} {colour} {plural(shape)}", kind="counting", objects=tuple(items)),
            Prompt(text=f"{number} {plural(shape)}", kind="counting", objects=bare),
        ]
    if scene.kind == "triple":
        a, b, c = (_noun(*item) for item in items)
        return [Prompt(text=f"{a}, {b} and {c}", kind="three_objects", objects=tuple(items))]
    return _pair_captions(scene)


def _pair_captions(scene: Scene) -> list[Prompt]:
    first, second = scene.objects
    side = relation(first, second)
    found = []
    for a, b, where in ((first, second, side), (second, first, _OPPOSITE.get(side or ""))):
        full = ((a.shape, a.colour), (b.shape, b.colour))
        bare = ((a.shape, None), (b.shape, None))
        text_a, text_b = _noun(a.shape, a.colour), _noun(b.shape, b.colour)
        found.append(Prompt(text=f"{text_a} and {text_b}", kind="color_attribution", objects=full))
        if where is not None:
            found.append(Prompt(text=f"{text_a} {where} {text_b}", kind="position", objects=full, relation=where))
        found.append(Prompt(text=f"{_noun(a.shape)} and {_noun(b.shape)}", kind="two_object", objects=bare))
    return found


# how often a training caption is of each kind, given that the scene allows it
_CAPTION_WEIGHTS = {
    "colors": 3,
    "single_object": 1,
    "counting": 1,
    "three_objects": 1,
    "color_attribution": 2,
    "position": 3,
    "two_object": 1,
}
# in reading order, what does not say where things lie comes once in place of twice
_READING_WEIGHTS = _CAPTION_WEIGHTS | {"color_attribution": 4, "two_object": 2}


def claims_in_reading_order(scene: Scene) -> list[Prompt]:
    """Those of `captions` that name objects from the top left to the bottom right, or say which lies where.

    The order then tells a painter what goes where in all of them, so that codes drawn side by side agree.
    """
    scene = replace(scene, objects=tuple(sorted(scene.objects, key=lambda item: item.x + item.y)))
    first = scene.objects[0].shape
    return [claim for claim in captions(scene) if claim.relation or claim.objects[0][0] == first]


def caption(scene: Scene, *, variant: int = 0, reading_order: bool = True) -> str:
    """One caption, chosen by the scene's own `phrasing` and `variant`; other variants word it differently."""
    rng = random.Random(f"{scene.phrasing}/{variant}")
    claims, often = captions(scene), _CAPTION_WEIGHTS
    if reading_order:
        claims, often = claims_in_reading_order(scene), _READING_WEIGHTS
    weights = [often[claim.kind] for claim in claims]
    return rng.choice(_OPENINGS) + rng.choices(claims, weights)[0].text


def prompts(kind: PromptKind, split: Split = "seen", *, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts of one GenEval kind, worded as training captions are.

    In split "seen" the named pairs occur in training; in "heldout" every prompt names a held-out pair, so the
    kinds that name no colour (see HELD_OUT_KINDS) give an empty list. Texts repeat once a kind has no more to say.

    Raises ValueError for an unknown kind.
    """
    if kind not in PROMPT_KINDS:
        raise ValueError(f"unknown prompt kind {kind!r}; expected one of {', '.join(PROMPT_KINDS)}")
    if split == "heldout" and kind not in HELD_OUT_KINDS:
        return []
    sampler = SceneSampler(seed, split)
    found = []
    for index in range(count):
        scene = sampler.scene(index, kind=_SCENE_OF_KIND[kind])
        claims = [claim for claim in captions(scene) if claim.kind == kind]
        if split == "heldout":
            claims = [claim for claim in claims if claim.held_out]
        found.append(claims[scene.phrasing % len(claims)])
    return found

"""Questions about a scene with one-or-two-word answers: colour, shape, count, place, and yes/no existence.

Existence follows POPE: yes and no are balanced, and a "no" question is random (any absent pair) or adversarial (a
colour and a shape that are both in the picture, but on different objects).
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

from tokenflow.data.captions import plural
from tokenflow.data.shapes import COLOURS, HELD_OUT_PAIRS, SHAPES, Scene, relation

QuestionKind = Literal["colour", "shape", "count", "where", "exists"]
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
_WHERE = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
_COUNTS = ("zero", "one", "two", "three")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its one right answer, and its kind."""

    question: str
    answer: str
    kind: QuestionKind
    held_out: bool = False
    """Whether it is about an object whose (colour, shape) pair is held out of training."""


def questions(scene: Scene) -> list[Question]:
    """Every question that has exactly one right answer, in a fixed order; existence is balanced between yes and no."""
    return [*_colours_and_shapes(scene), *_counts(scene), *_places(scene), *_existence(scene)]


def _colours_and_shapes(scene: Scene) -> list[Question]:
    found = []
    for colour, shape in dict.fromkeys((item.colour, item.shape) for item in scene.objects):
        held_out = (colour, shape) in HELD_OUT_PAIRS
        one = sum(item.shape == shape for item in scene.objects) == 1
        if len({item.colour for item in scene.objects if item.shape == shape}) == 1:
            text = f"what colour is the {shape}?" if one else f"what colour are the {plural(shape)}?"
            found.append(Question(question=text, answer=colour, kind="colour", held_out=held_out))
        if len({item.shape for item in scene.objects if item.colour == colour}) == 1:
            one = sum(item.colour == colour for item in scene.objects) == 1
            text = f"what shape is the {colour} object?" if one else f"what shape are the {colour} objects?"
            found.append(Question(question=text, answer=shape, kind="shape", held_out=held_out))
    return found


def _counts(scene: Scene) -> list[Question]:
    rng = random.Random(f"{scene.phrasing}/counts")
    pairs = [(item.colour, item.shape) for item in scene.objects]
    colour, shape = rng.choice(pairs)
    held_out = (colour, shape) in HELD_OUT_PAIRS
    absent = rng.choice([name for name in SHAPES if name not in {shape for _, shape in pairs}])
    asked = [
        ("how many objects are there?", len(pairs), False),
        (f"how many {plural(shape)} are there?", sum(pair[1] == shape for pair in pairs), held_out),
        (f"how many {colour} objects are there?", sum(pair[0] == colour for pair in pairs), held_out),
        (f"how many {plural(absent)} are there?", 0, False),
    ]
    return [Question(question=text, answer=_COUNTS[number], kind="count", held_out=h) for text, number, h in asked]


def _places(scene: Scene) -> list[Question]:
    if scene.kind == "single":
        item = scene.objects[0]
        if min(abs(item.x - 0.5), abs(item.y - 0.5)) < 0.08:
            return []
        place = f"{'top' if item.y < 0.5 else 'bottom'} {'left' if item.x < 0.5 else 'right'}"
        held_out = (item.colour, item.shape) in HELD_OUT_PAIRS
        return [Question(question=f"where is the {item.shape}?", answer=place, kind="where", held_out=held_out)]
    if scene.kind != "pair":
        return []
    found = []
    for first, second in (scene.objects, scene.objects[::-1]):
        side = relation(first, second)
        if side is None:
            continue
        text = f"where is the {first.colour} {first.shape} relative to the {second.colour} {second.shape}?"
        held_out = any((item.colour, item.shape) in HELD_OUT_PAIRS for item in scene.objects)
        found.append(Question(question=text, answer=_WHERE[side], kind="where", held_out=held_out))
    return found


def _existence(scene: Scene) -> list[Question]:
    rng = random.Random(f"{scene.phrasing}/exists")
    pairs = list(dict.fromkeys((item.colour, item.shape) for item in scene.objects))
    absent = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in pairs]
    if not any(pair in HELD_OUT_PAIRS for pair in pairs):
        # else training would teach that the answer for a held-out pair is always "no"
        absent = [pair for pair in absent if pair not in HELD_OUT_PAIRS]
    swapped = [(a[0], b[1]) for a in pairs for b in pairs if (a[0], b[1]) in absent]
    # one word right, one wrong is the hardest "no"; a scene of one kind of object has no swap
    near = swapped or [pair for pair in absent if pair[0] == pairs[0][0] or pair[1] == pairs[0][1]]
    asked = [(rng.choice(pairs), "yes"), (rng.choice(absent), "no")]
    if len(pairs) > 1:
        asked += [(next(pair for pair in pairs if pair != asked[0][0]), "yes"), (rng.choice(near), "no")]
    elif rng.random() < 0.5:
        asked[1] = (rng.choice(near), "no")
    return [
        Question(
            question=f"is there a {colour} {shape}?",
            answer=answer,
            kind="exists",
            held_out=(colour, shape) in HELD_OUT_PAIRS,
        )
        for (colour, shape), answer in asked
    ]

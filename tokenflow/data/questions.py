"""Questions about a scene with one-or-two-word answers: colour, shape, count, place, and yes/no existence.

Existence follows POPE: yes and no are balanced, and what a "no" question asks for is random (any absent pair), popular
(an absent pair that training shows) or adversarial (a colour and a shape that are both in the picture, but on different
objects). `questions` says all that training may learn of a scene, `quiz` draws an examination.
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

from tokenflow.data.captions import plural
from tokenflow.data.shapes import COLOURS, HELD_OUT_PAIRS, SHAPES, Scene, SceneSampler, Split, corner, relation

QuestionKind = Literal["colour", "shape", "count", "where", "exists"]
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
Negatives = Literal["random", "popular", "adversarial"]
NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)
"""How POPE chooses what a "no" question asks for."""
Pair = tuple[str, str]
"""(colour, shape)."""
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


@dataclass(frozen=True, kw_only=True)
class QuizItem:
    """A question of an examination, with its picture."""

    number: int
    """Its place in the quiz of its kind and split."""
    split: Split
    scene: Scene
    """What to show: `tokenflow.data.shapes.draw`."""
    question: Question
    negatives: Negatives | None = None
    """Of an existence question: the set of POPE that it belongs to, yes and no questions alike."""


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
        place = corner(item)
        if place is None:
            return []
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
    pairs = _pairs(scene)
    absent = _absent(scene)
    if not any(pair in HELD_OUT_PAIRS for pair in pairs):
        # else training would teach that the answer for a held-out pair is always "no"
        absent = [pair for pair in absent if pair not in HELD_OUT_PAIRS]
    near = _near(pairs, absent)
    asked = [(rng.choice(pairs), "yes"), (rng.choice(absent), "no")]
    if len(pairs) > 1:
        asked += [(next(pair for pair in pairs if pair != asked[0][0]), "yes"), (rng.choice(near), "no")]
    elif rng.random() < 0.5:
        asked[1] = (rng.choice(near), "no")
    return [_exists(pair, answer) for pair, answer in asked]


def _pairs(scene: Scene) -> list[Pair]:
    return list(dict.fromkeys((item.colour, item.shape) for item in scene.objects))


def _absent(scene: Scene) -> list[Pair]:
    pairs = _pairs(scene)
    return [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in pairs]


def _near(pairs: list[Pair], absent: list[Pair]) -> list[Pair]:
    """The absent pairs that are hardest to deny: one word right, one wrong."""
    swapped = [(a[0], b[1]) for a in pairs for b in pairs if (a[0], b[1]) in absent]
    # a scene of one kind of object has no swap
    return swapped or [pair for pair in absent if pair[0] == pairs[0][0] or pair[1] == pairs[0][1]]


def _exists(pair: Pair, answer: str) -> Question:
    text = f"is there a {pair[0]} {pair[1]}?"
    return Question(question=text, answer=answer, kind="exists", held_out=pair in HELD_OUT_PAIRS)


def quiz(kind: QuestionKind, split: Split = "seen", *, count: int, seed: int = 0) -> list[QuizItem]:
    """`count` questions of one kind, each about a scene of its own; a function of the arguments.

    In split "seen" scenes are new and their pairs those of training. In "heldout" every picture shows a held-out pair,
    and every question that can be answered by looking at it is about it. Existence questions are half "yes", and a
    third of each half belongs to each of POPE's three sets; training shows its pairs about equally often, so that on
    seen scenes "popular" is one more "random".

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in QUESTION_KINDS:
        raise ValueError(f"unknown question kind {kind!r}; expected one of {', '.join(QUESTION_KINDS)}")
    sampler = SceneSampler(seed, split)
    found: list[QuizItem] = []
    index = 0
    while len(found) < count:
        scene = sampler[index]
        rng = random.Random(f"{seed}/{split}/{kind}/{index}/quiz")
        index += 1
        if kind == "exists":
            found.append(_existence_item(scene, split=split, number=len(found), rng=rng))
            continue
        asked = [q for q in questions(scene) if q.kind == kind and (split != "heldout" or q.held_out)]
        if asked:
            # the answer first, so that no answer is right most of the time
            answer = rng.choice(sorted({question.answer for question in asked}))
            question = rng.choice([question for question in asked if question.answer == answer])
            found.append(QuizItem(number=len(found), split=split, scene=scene, question=question))
    return found


def _existence_item(scene: Scene, *, split: Split, number: int, rng: random.Random) -> QuizItem:
    negatives = NEGATIVES[number // 2 % len(NEGATIVES)]
    pairs, absent = _pairs(scene), _absent(scene)
    if number % 2 == 0:
        question = _exists(rng.choice(_held_out_first(pairs) if split == "heldout" else pairs), "yes")
        return QuizItem(number=number, split=split, scene=scene, question=question, negatives=negatives)
    trained = [pair for pair in absent if pair not in HELD_OUT_PAIRS]
    allowed = absent if split == "heldout" else trained
    candidates = {"random": allowed, "popular": trained, "adversarial": _near(pairs, allowed)}[negatives]
    if split == "heldout" and negatives == "random":
        # else a model that affirms every name it never heard would be right about held-out pairs
        candidates = _held_out_first(candidates)
    question = _exists(rng.choice(candidates), "no")
    return QuizItem(number=number, split=split, scene=scene, question=question, negatives=negatives)


def _held_out_first(pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair in HELD_OUT_PAIRS] or pairs

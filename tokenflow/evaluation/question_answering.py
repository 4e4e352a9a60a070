"""Whether a model that sees answers the built-in world's questions: exact match by kind, existence as POPE scores it.

Each question has a picture of its own, so that standard errors mean what they say. "heldout" questions are about
(colour, shape) pairs that training never shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from tokenflow.data.questions import NEGATIVES, QUESTION_KINDS, QuestionKind, QuizItem, quiz
from tokenflow.data.shapes import draw
from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.shares import Share, mean_of_kinds, share

QuizSplit = Literal["seen", "heldout"]
QUIZ_SPLITS: tuple[QuizSplit, ...] = ("seen", "heldout")
ALL = "all"
"""POPE's three sets together."""


class Answerer(Protocol):
    """Answers questions about pictures: `ImageToText`, or anything alike."""

    def answer(self, images: Sequence[Any], questions: Sequence[str]) -> list[str]:
        """One answer a question; `images` are PIL pictures, one a question."""


@dataclass(frozen=True, kw_only=True)
class QuestionPlan:
    """What is asked."""

    questions_per_kind: int = 100
    """Questions of each kind and split."""
    question_seed: int = 1
    """Which questions; the scenes are not those of training, whatever the seed."""
    image_size: int = 32
    """Side of the pictures, in pixels."""
    kinds: tuple[QuestionKind, ...] = QUESTION_KINDS
    """Kinds of question."""
    batch_size: int = 64
    """Questions answered at once; changes no result."""
    cards: int = 4
    """Questions of each kind and split that the report shows: the first ones."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("questions_per_kind", 2), ("image_size", 16), ("batch_size", 1), ("cards", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not self.kinds or set(self.kinds) - set(QUESTION_KINDS):
            raise ValueError(f"kinds is {self.kinds}; expected some of {', '.join(QUESTION_KINDS)}")

    def questions(self) -> list[QuizItem]:
        """All questions, kind by kind, the seen ones of a kind before the held-out ones."""
        return [
            item
            for kind in self.kinds
            for split in QUIZ_SPLITS
            for item in quiz(kind, split, count=self.questions_per_kind, seed=self.question_seed)
        ]


def answer_questions(
    model: Answerer,
    plan: QuestionPlan,
    *,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, str]:
    """Ask a model: {place in `plan.questions()`: answer}.

    Args:
        model: Answers a batch.
        plan: What is asked.
        part: (rank, of how many): takes every so many batches; the dictionaries of all ranks together are complete.
        progress: Gets how many answers each batch added.
    """
    items = plan.questions()
    rank, world_size = part
    found: dict[int, str] = {}
    for start in range(rank * plan.batch_size, len(items), world_size * plan.batch_size):
        places = range(start, min(start + plan.batch_size, len(items)))
        pictures = [Image.fromarray(draw(items[place].scene, plan.image_size)) for place in places]
        given = model.answer(pictures, [items[place].question.question for place in places])
        found |= dict(zip(places, given, strict=True))
        progress(len(places))
    return found


def normalised(answer: str) -> str:
    """What is compared: lower case, one space between words, no full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


def is_right(item: QuizItem, answer: str) -> bool:
    """Whether an answer is the expected one, word for word."""
    return normalised(answer) == normalised(item.question.answer)


@dataclass(frozen=True, kw_only=True)
class ExistenceScore:
    """POPE's measures of one set of yes/no questions; "yes" is the positive class."""

    accuracy: Share
    precision: float | None
    """Share of "yes" answers that are right; None where the model never says yes."""
    recall: float | None
    """Share of "yes" questions answered with yes; None where there are none."""
    f1: float | None
    """Harmonic mean of the two; None where it is not defined."""
    yes_share: float
    """Share of answers that are yes; half of the questions are."""
    unclear: int
    """Answers that are neither yes nor no: wrong in every measure."""


def score_existence(expected: Sequence[bool], given: Sequence[str]) -> ExistenceScore:
    """POPE's measures of answers to existence questions, `expected` True where "yes" is right.

    POPE takes any answer without "no" or "not" for a yes; here an answer must begin with yes or no.
    """
    first = [(normalised(answer).replace(",", " ").split() or [""])[0] for answer in given]
    said_yes = np.array([word == "yes" for word in first])
    said_no = np.array([word == "no" for word in first])
    truth = np.asarray(expected, dtype=bool)
    hits = int((said_yes & truth).sum())
    precision = hits / int(said_yes.sum()) if said_yes.any() else None
    recall = hits / int(truth.sum()) if truth.any() else None
    both = None if precision is None or recall is None or not precision + recall else (precision, recall)
    return ExistenceScore(
        accuracy=share((said_yes & truth) | (said_no & ~truth)),
        precision=precision,
        recall=recall,
        f1=2 * both[0] * both[1] / sum(both) if both else None,
        yes_share=float(said_yes.mean()),
        unclear=int((~said_yes & ~said_no).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Card:
    """A question that was asked, with its picture and the answer."""

    picture: Picture
    """uint8 [S, S, 3]."""
    question: str
    kind: QuestionKind
    split: str
    expected: str
    given: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """Shares of right answers by split and kind, POPE's measures, and the first questions of every kind."""

    plan: QuestionPlan
    kinds: dict[str, dict[str, Share]]
    """split -> kind -> exact match."""
    existence: dict[str, dict[str, ExistenceScore]]
    """split -> "random", "popular", "adversarial" or "all" -> measures; empty where existence is not asked."""
    cards: tuple[Card, ...] = ()

    def overall(self, split: QuizSplit) -> Share:
        """Mean over the kinds of a split, each with the same weight."""
        return mean_of_kinds(list(self.kinds[split].values()))

    @property
    def metrics(self) -> dict[str, float]:
        """`overall` (seen pairs), `heldout`, `SPLIT/KIND`, each with `_error`; `SPLIT/pope_MEASURE` where defined."""
        found: dict[str, float] = {}
        for name, split in (("overall", "seen"), ("heldout", "heldout")):
            part = self.overall(split)
            found |= {name: part.value, f"{name}_error": part.error}
        for split, kinds in self.kinds.items():
            for kind, part in kinds.items():
                found |= {f"{split}/{kind}": part.value, f"{split}/{kind}_error": part.error}
        for split, sets in self.existence.items():
            score = sets[ALL]
            values = {"accuracy": score.accuracy.value, "precision": score.precision, "recall": score.recall}
            values |= {"f1": score.f1, "yes_share": score.yes_share}
            found |= {f"{split}/pope_{name}": value for name, value in values.items() if value is not None}
        return found


def score_answers(plan: QuestionPlan, answers: dict[int, str]) -> QuestionResult:
    """Mark the answers of `answer_questions`, of all ranks together.

    Raises:
        ValueError: Answers are missing.
    """
    items = plan.questions()
    if missing := len(items) - len(answers.keys() & set(range(len(items)))):
        raise ValueError(f"{missing} of {len(items)} questions have no answer; put the answers of all ranks together")
    kinds: dict[str, dict[str, Share]] = {}
    existence: dict[str, dict[str, ExistenceScore]] = {}
    for split in QUIZ_SPLITS:
        for kind in plan.kinds:
            places = [p for p, item in enumerate(items) if (item.split, item.question.kind) == (split, kind)]
            marks = [is_right(items[place], answers[place]) for place in places]
            kinds.setdefault(split, {})[kind] = share(marks)
            if kind == "exists":
                existence[split] = _existence(items, answers, places)
    shown = [place for place, item in enumerate(items) if item.number < plan.cards]
    cards = tuple(_card(items[place], answers[place], plan.image_size) for place in shown)
    return QuestionResult(plan=plan, kinds=kinds, existence=existence, cards=cards)


def _existence(items: list[QuizItem], answers: dict[int, str], places: list[int]) -> dict[str, ExistenceScore]:
    found = {}
    for name in (*NEGATIVES, ALL):
        chosen = [place for place in places if name in (ALL, items[place].negatives)]
        if chosen:
            truth = [items[place].question.answer == "yes" for place in chosen]
            found[name] = score_existence(truth, [answers[place] for place in chosen])
    return found


def _card(item: QuizItem, answer: str, image_size: int) -> Card:
    return Card(
        picture=draw(item.scene, image_size),
        question=item.question.question,
        kind=item.question.kind,
        split=item.split,
        expected=item.question.answer,
        given=answer.strip(),
        right=is_right(item, answer),
    )

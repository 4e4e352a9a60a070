"""Whether pictures of the built-in world show what their prompts say: GenEval's six kinds, judged by an exact verifier.

Kinds that name colours are also asked for (colour, shape) pairs that training never shows ("held out"). Several ways to
sample are compared on the same prompts, the paper's Table 6 in small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tokenflow.data.captions import PROMPT_KINDS, Prompt, prompts
from tokenflow.data.shapes import Split
from tokenflow.data.verifier import check
from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.painting import Painter, Sampling, paint
from tokenflow.evaluation.shares import Share, mean_of_kinds, share
from tokenflow.generation.options import Steps

SINGLE_STEP: Steps = "single-step"
MARKS = NDArray[np.int8]
"""1 where the verifier reads the prompt back from the picture, else 0."""


@dataclass(frozen=True, kw_only=True)
class CompositionalPlan:
    """What is asked, and the ways to sample that are compared."""

    prompts_per_kind: int = 50
    """Prompts of each kind and split."""
    images_per_prompt: int = 1
    """Pictures of each prompt; they share the prompt's part of the standard error."""
    prompt_seed: int = 1
    """Which prompts."""
    steps: tuple[Steps, ...] = ("single-step", "two-step", "three-step")
    """Samplers in the table; the recipe's own is added."""
    guidance_scales: tuple[float, ...] = (0.0, 2.5, 7.5)
    """Strengths of guidance in the table; the recipe's own is added."""
    table_prompts_per_kind: int | None = None
    """Prompts a kind in the rest of the table, to save time: all but the main sampler and guidance, and single- and
    multi-step at that guidance; `prompts_per_kind` when null."""
    gallery_images: int = 6
    """Pictures of one prompt in each row of the grid; not counted in any number."""
    batch_size: int = 32
    """Pictures painted at once; changes no result."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("prompts_per_kind", "images_per_prompt", "gallery_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.table_prompts_per_kind is not None and self.table_prompts_per_kind < 1:
            raise ValueError(f"table_prompts_per_kind is {self.table_prompts_per_kind}; expected at least 1, or null")
        for scale in self.guidance_scales:
            Sampling(guidance_scale=scale)

    def questions(self) -> list["Question"]:
        """All prompts, kind by kind, the seen ones of a kind before the held-out ones."""
        return [
            Question(prompt=prompt, split=split, number=number)
            for kind in PROMPT_KINDS
            for split in ("seen", "heldout")
            for number, prompt in enumerate(prompts(kind, split, count=self.prompts_per_kind, seed=self.prompt_seed))
        ]

    def settings(self, main: Sampling) -> list[Sampling]:
        """`main` first, then every other combination of sampler and guidance."""
        steps = [name for name in get_args(Steps) if name in {*self.steps, main.steps}]
        scales = sorted({*self.guidance_scales, main.guidance_scale})
        table = [replace(main, steps=name, guidance_scale=scale) for name in steps for scale in scales]
        return [main, *(setting for setting in table if setting != main)]

    def asked(self, setting: Sampling, main: Sampling) -> list["Question"]:
        """The questions of a setting: all for the main one and the single- and multi-step it is compared with."""
        compared = (main.steps, SINGLE_STEP, multi_steps(main))
        count = self.prompts_per_kind
        if setting.guidance_scale != main.guidance_scale or setting.steps not in compared:
            count = self.table_prompts_per_kind or count
        return [question for question in self.questions() if question.number < count]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and whether it names a pair that training never shows."""

    prompt: Prompt
    split: Split
    number: int
    """Position within its kind and split."""


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """What one way to sample reached."""

    setting: Sampling
    kinds: dict[str, dict[str, Share]]
    """split -> kind -> share."""

    def overall(self, split: Split) -> Share:
        """Mean over the kinds of a split."""
        return mean_of_kinds(list(self.kinds[split].values()))

    def row(self) -> dict[str, Any]:
        """As plain values."""
        values: dict[str, Any] = {"steps": self.setting.steps, "guidance_scale": self.setting.guidance_scale}
        for split, kinds in self.kinds.items():
            overall = self.overall(split)
            values |= {split: overall.value, f"{split}_error": overall.error, f"{split}_images": overall.images}
            values |= {f"{split}/{kind}": part.value for kind, part in kinds.items()}
            values |= {f"{split}/{kind}_error": part.error for kind, part in kinds.items()}
        return values


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """Pictures of one prompt, and which of them the verifier reads back."""

    prompt: str
    kind: str
    split: Split
    pictures: Picture
    """uint8 [n, S, S, 3]."""
    marks: tuple[bool, ...]


@dataclass
class CompositionalResult:
    """Numbers of the main setting, the table of all settings, and pictures."""

    plan: CompositionalPlan
    scores: list[SettingScore]
    """The main setting first."""
    gain: Share | None
    """Multi-step minus single-step on the same seen prompts; None where one of the two was not asked for."""
    gallery: list[GalleryRow] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """`seen`, `heldout` (main setting), `SPLIT/KIND`, `single_step`, `multi_step` (seen prompts, main guidance).

        Each with `_error`, the standard error; `multi_step_gain` is the paired difference of the last two.
        """
        main = self.scores[0]
        row = main.row()
        found = {name: value for name, value in row.items() if name.startswith(("seen", "heldout"))}
        found = {name: value for name, value in found.items() if not name.endswith("_images")}
        single, multi = self.of(SINGLE_STEP), self.of(self.multi_steps)
        for name, score in (("single_step", single), ("multi_step", multi)):
            if score is not None:
                overall = score.overall("seen")
                found |= {name: overall.value, f"{name}_error": overall.error}
        if self.gain is not None:
            found |= {"multi_step_gain": self.gain.value, "multi_step_gain_error": self.gain.error}
        return found

    @property
    def multi_steps(self) -> Steps:
        """The sampler that stands for multi-step: the main one, or three-step where that is single-step or greedy."""
        return multi_steps(self.scores[0].setting)

    def of(self, steps: Steps) -> SettingScore | None:
        """The score of a sampler at the main guidance, if it was asked for."""
        wanted = replace(self.scores[0].setting, steps=steps)
        return next((score for score in self.scores if score.setting == wanted), None)

    def rows(self) -> list[dict[str, Any]]:
        """All settings, by sampler, then guidance: the table."""
        order = get_args(Steps)
        rows = [score.row() for score in self.scores]
        return sorted(rows, key=lambda row: (order.index(row["steps"]), row["guidance_scale"]))


def multi_steps(main: Sampling) -> Steps:
    """See `CompositionalResult.multi_steps`."""
    return main.steps if main.steps in ("two-step", "three-step") else "three-step"


def score_setting(questions: Sequence[Question], marks: MARKS, setting: Sampling) -> SettingScore:
    """Shares of each kind and split; `marks` [questions, images]."""
    kinds: dict[str, dict[str, Share]] = {"seen": {}, "heldout": {}}
    for (kind, split), group in groupby(range(len(questions)), key=lambda i: _group(questions[i])):
        kinds[split][kind] = share(marks[list(group)].mean(axis=1))
    return SettingScore(setting=setting, kinds=kinds)


def paired_gain(questions: Sequence[Question], single: MARKS, multi: MARKS) -> Share:
    """Multi-step minus single-step over the seen prompts, each compared with itself; kinds are weighted alike."""
    difference = multi.mean(axis=1) - single.mean(axis=1)
    seen = [i for i, question in enumerate(questions) if question.split == "seen"]
    kinds = [list(group) for _, group in groupby(seen, key=lambda i: _group(questions[i]))]
    return mean_of_kinds([share(difference[group]) for group in kinds])


def judge(
    painter: Painter,
    questions: Sequence[Question],
    setting: Sampling,
    *,
    plan: CompositionalPlan,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda done: None,
) -> MARKS:
    """Paint and judge: marks [questions, images_per_prompt].

    `part` (rank, of how many) takes every so many batches and leaves zeros elsewhere. `progress` gets how many pictures
    each batch added.
    """
    copies = plan.images_per_prompt
    marks = np.zeros(len(questions) * copies, np.int8)
    rank, world_size = part
    for start in range(rank * plan.batch_size, len(marks), world_size * plan.batch_size):
        places = range(start, min(start + plan.batch_size, len(marks)))
        asked = [questions[place // copies].prompt for place in places]
        pictures = paint(painter, [prompt.text for prompt in asked], setting, first_image=start)
        marks[places.start : places.stop] = [check(*pair) for pair in zip(asked, pictures, strict=True)]
        progress(len(places))
    return marks.reshape(len(questions), copies)


def paint_gallery(painter: Painter, plan: CompositionalPlan, main: Sampling) -> list[GalleryRow]:
    """The first prompt of each kind and split, several times, with random numbers of their own."""
    questions = plan.questions()
    first_image = len(questions) * plan.images_per_prompt
    rows = []
    for question in questions:
        if question.number:
            continue
        pictures = paint(painter, [question.prompt.text] * plan.gallery_images, main, first_image=first_image)
        first_image += plan.gallery_images
        rows.append(
            GalleryRow(
                prompt=question.prompt.text,
                kind=question.prompt.kind,
                split=question.split,
                pictures=pictures,
                marks=tuple(check(question.prompt, picture) for picture in pictures),
            )
        )
    return rows


def _group(question: Question) -> tuple[str, Split]:
    return question.prompt.kind, question.split

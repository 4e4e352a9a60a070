"""Prompts of the built-in world: what is asked, how it is judged, what the numbers mean."""

import math
from statistics import mean, stdev

import numpy as np
import pytest

from tests.evaluation.painters import DrawingPainter
from tokenflow.data.captions import HELD_OUT_KINDS, PROMPT_KINDS
from tokenflow.evaluation.compositional import (
    CompositionalPlan,
    CompositionalResult,
    judge,
    paint_gallery,
    paired_gain,
    score_setting,
    share,
)
from tokenflow.evaluation.painting import Sampling

MAIN = Sampling(steps="three-step", guidance_scale=2.0)


def plan(**fields) -> CompositionalPlan:
    defaults = {"prompts_per_kind": 4, "guidance_scales": (0.0, 2.0), "steps": ("single-step", "three-step")}
    return CompositionalPlan(**{**defaults, "gallery_images": 2, "batch_size": 8, **fields})


def evaluate(painter, asked: CompositionalPlan, main: Sampling = MAIN) -> CompositionalResult:
    settings = asked.settings(main)
    questions = [asked.asked(setting, main) for setting in settings]
    marks = [judge(painter, q, setting, plan=asked) for q, setting in zip(questions, settings, strict=True)]
    scores = [score_setting(*parts) for parts in zip(questions, marks, settings, strict=True)]
    single = next(i for i, s in enumerate(settings) if (s.steps, s.guidance_scale) == ("single-step", 2.0))
    gain = paired_gain(questions[0], marks[single], marks[0])
    return CompositionalResult(plan=asked, scores=scores, gain=gain, gallery=paint_gallery(painter, asked, main))


def test_all_kinds_are_asked_seen_and_held_out_only_where_colours_are_named():
    questions = plan().questions()
    asked = {(q.prompt.kind, q.split) for q in questions}
    assert asked == {(kind, "seen") for kind in PROMPT_KINDS} | {(kind, "heldout") for kind in HELD_OUT_KINDS}
    assert len(questions) == 4 * len(asked)
    assert all(q.prompt.held_out == (q.split == "heldout") for q in questions)


def test_a_painter_that_draws_what_is_said_is_right_everywhere():
    result = evaluate(DrawingPainter(), plan())
    metrics = result.metrics
    assert metrics["seen"] == metrics["heldout"] == metrics["single_step"] == metrics["multi_step"] == 1.0
    assert metrics["seen_error"] == 0 and metrics["multi_step_gain"] == 0
    assert all(metrics[f"seen/{kind}"] == 1 for kind in PROMPT_KINDS)
    assert all(all(row.marks) for row in result.gallery)


def test_shares_are_kept_apart_by_kind_split_sampler_and_guidance():
    def right(prompt, index, options):
        if options["guidance_scale"] == 0:
            return False
        if options["steps"] == "single-step":
            return prompt.kind == "colors"
        return not prompt.held_out and prompt.kind != "position"

    result = evaluate(DrawingPainter(right), plan())
    metrics = result.metrics
    assert metrics["seen"] == pytest.approx(5 / 6) and metrics["heldout"] == 0
    assert metrics["seen/position"] == 0 and metrics["seen/colors"] == 1
    assert metrics["multi_step"] == metrics["seen"]
    assert metrics["single_step"] == pytest.approx(1 / 6)
    assert metrics["multi_step_gain"] == pytest.approx(4 / 6) and metrics["multi_step_gain_error"] == 0
    table = {(row["steps"], row["guidance_scale"]): (row["seen"], row["heldout"]) for row in result.rows()}
    assert table[("three-step", 0.0)] == (0, 0)
    assert table[("single-step", 2.0)] == (pytest.approx(1 / 6), pytest.approx(1 / 4))
    assert [(row["steps"], row["guidance_scale"]) for row in result.rows()] == [
        ("single-step", 0.0), ("single-step", 2.0), ("three-step", 0.0), ("three-step", 2.0),
    ]  # fmt: skip


def test_standard_errors_are_those_of_the_mean_over_prompts():
    result = evaluate(DrawingPainter(lambda prompt, index, _: index % 3 == 0), plan(prompts_per_kind=7))
    questions = plan(prompts_per_kind=7).questions()
    by_group: dict[tuple[str, str], list[float]] = {}
    for index, question in enumerate(questions):
        by_group.setdefault((question.prompt.kind, question.split), []).append(float(index % 3 == 0))
    errors = {group: stdev(values) / math.sqrt(len(values)) for group, values in by_group.items()}
    for (kind, split), values in by_group.items():
        assert result.metrics[f"{split}/{kind}"] == pytest.approx(mean(values))
        assert result.metrics[f"{split}/{kind}_error"] == pytest.approx(errors[kind, split])
    seen = [error for (_, split), error in errors.items() if split == "seen"]
    assert result.metrics["seen_error"] == pytest.approx(math.sqrt(sum(e**2 for e in seen)) / len(seen))


def test_pictures_of_one_prompt_are_one_observation():
    marks = np.array([[1, 1], [0, 0], [1, 1], [0, 0]], np.int8)
    assert share(marks.mean(axis=1)).error == pytest.approx(stdev([1, 0, 1, 0]) / 2)
    asked = plan(images_per_prompt=3, prompts_per_kind=2)
    painter = DrawingPainter()
    marks = judge(painter, asked.questions(), MAIN, plan=asked)
    assert marks.shape == (len(asked.questions()), 3) and marks.all()
    assert painter.calls[0][0][:4] == (*[asked.questions()[0].prompt.text] * 3, asked.questions()[1].prompt.text)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 3), (1, 64), (2, 8), (3, 5)])
def test_ranks_and_batches_change_no_mark(world_size, batch_size):
    painter = DrawingPainter(lambda prompt, index, _: index % 3 == 0)
    whole = judge(painter, plan().questions(), MAIN, plan=plan())
    asked = plan(batch_size=batch_size)
    parts = [judge(painter, asked.questions(), MAIN, plan=asked, part=(rank, world_size)) for rank in range(world_size)]
    assert np.array_equal(sum(parts), whole)


def test_fewer_prompts_are_asked_where_nothing_is_compared_with_the_main_setting():
    asked = plan(prompts_per_kind=5, table_prompts_per_kind=2, steps=("single-step", "two-step"))
    sizes = {(s.steps, s.guidance_scale): len(asked.asked(s, MAIN)) for s in asked.settings(MAIN)}
    assert sizes == {
        ("three-step", 2.0): 50, ("three-step", 0.0): 20, ("single-step", 2.0): 50, ("single-step", 0.0): 20,
        ("two-step", 2.0): 20, ("two-step", 0.0): 20,
    }  # fmt: skip


def test_the_gallery_has_random_numbers_of_its_own():
    asked = plan()
    painter = DrawingPainter()
    rows = paint_gallery(painter, asked, MAIN)
    assert [(row.kind, row.split) for row in rows] == list(
        dict.fromkeys((q.prompt.kind, q.split) for q in asked.questions())
    )
    firsts = [options["first_image"] for _, options in painter.calls]
    assert firsts == [len(asked.questions()) + 2 * number for number in range(len(rows))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan(prompts_per_kind=0), "prompts_per_kind is 0"),
        (lambda: plan(table_prompts_per_kind=0), "table_prompts_per_kind is 0"),
        (lambda: plan(guidance_scales=(-1.0,)), "guidance_scale is -1"),
        (lambda: Sampling(steps="four-step"), "unknown steps 'four-step'; expected one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

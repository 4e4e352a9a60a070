import math

import numpy as np
import pytest

from tests.evaluation.answerers import Looker, Parrot
from tokenflow.data.questions import NEGATIVES, QUESTION_KINDS
from tokenflow.evaluation.question_answering import (
    QuestionPlan,
    answer_questions,
    is_right,
    normalised,
    score_answers,
    score_existence,
)
from tokenflow.evaluation.question_tables import questions_markdown, questions_text

PLAN = QuestionPlan(questions_per_kind=30, batch_size=16, cards=2)


def result_of(model, plan=PLAN):
    return score_answers(plan, answer_questions(model, plan))


def test_a_model_that_sees_everything_is_right_about_everything():
    result = result_of(Looker())
    assert result.metrics["overall"] == result.metrics["heldout"] == 1.0
    assert all(share.value == 1 and share.images == 30 for kinds in result.kinds.values() for share in kinds.values())
    scores = [score for sets in result.existence.values() for score in sets.values()]
    assert all(
        (s.accuracy.value, s.precision, s.recall, s.f1, s.yes_share, s.unclear) == (1, 1, 1, 1, 0.5, 0) for s in scores
    )


def test_a_model_that_does_not_look_is_right_about_half_of_what_exists_and_little_else():
    result = result_of(Parrot("Yes."))
    assert result.kinds["seen"]["exists"].value == 0.5
    assert [result.kinds["seen"][kind].value for kind in QUESTION_KINDS if kind != "exists"] == [0, 0, 0, 0]
    for sets in result.existence.values():
        assert set(sets) == {*NEGATIVES, "all"}
        assert all((s.recall, s.yes_share) == (1, 1) for s in sets.values()) and sets["all"].precision == 0.5
    assert result.metrics["overall"] == pytest.approx(0.1)


def test_the_mean_gives_every_kind_the_same_weight_and_errors_are_those_of_a_share():
    result = result_of(Looker(blind_to=("red", "blue")))
    kinds = result.kinds["seen"]
    assert result.metrics["overall"] == pytest.approx(np.mean([part.value for part in kinds.values()]))
    for kind, part in kinds.items():
        assert 0 < part.value < 1
        naive = math.sqrt(part.value * (1 - part.value) / (part.images - 1))
        assert part.error == pytest.approx(naive) == result.metrics[f"seen/{kind}_error"]
    errors = [part.error for part in kinds.values()]
    assert result.metrics["overall_error"] == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / 5)


def test_batch_size_and_ranks_change_no_answer():
    whole = answer_questions(Looker(), PLAN)
    many = QuestionPlan(questions_per_kind=30, batch_size=7)
    parts = [answer_questions(Looker(), many, part=(rank, 3)) for rank in range(3)]
    assert sum(map(len, parts)) == len(whole) and {**parts[0], **parts[1], **parts[2]} == whole
    with pytest.raises(ValueError, match="have no answer; put the answers of all ranks together"):
        score_answers(many, parts[0])


def test_answers_are_compared_word_for_word_but_for_case_space_and_full_stop():
    item = next(item for item in PLAN.questions() if item.question.answer == "top left")
    for right in ("top left", " Top  Left.", "TOP LEFT .", "top\nleft"):
        assert is_right(item, right), right
    for wrong in ("top", "the top left", "left top", "top-left", ""):
        assert not is_right(item, wrong), wrong
    assert normalised("  A. B. ") == "a. b"


def test_existence_is_scored_as_by_hand():
    expected = [True, True, True, False, False, False]
    score = score_existence(expected, ["yes", "Yes, there is", "no", "yes", "no.", "maybe"])
    assert score.accuracy.value == pytest.approx(3 / 6)
    assert (score.precision, score.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert score.f1 == pytest.approx(2 / 3) and score.yes_share == 0.5 and score.unclear == 1


def test_measures_that_are_not_defined_are_none():
    never = score_existence([True, False], ["no", "no"])
    assert (never.precision, never.recall, never.f1) == (None, 0.0, None)
    assert score_existence([False, False], ["yes", "no"]).recall is None


def test_progress_counts_every_answer():
    counted = []
    answer_questions(Parrot("x"), PLAN, progress=counted.append)
    assert sum(counted) == len(PLAN.questions()) and max(counted) == 16


def test_cards_are_the_first_questions_of_each_kind():
    cards = result_of(Looker(blind_to=("red",))).cards
    assert len(cards) == 2 * 2 * len(QUESTION_KINDS)
    assert {(card.kind, card.split) for card in cards} == {(k, s) for k in QUESTION_KINDS for s in ("seen", "heldout")}
    assert all(card.picture.shape == (32, 32, 3) and card.right == (card.given == card.expected) for card in cards)


def test_tables_have_every_kind_and_set():
    result = result_of(Parrot("no"))
    text = questions_text(result)
    markdown = questions_markdown(result, title="nano", protocol={"answers": "greedy"})
    for words in (*QUESTION_KINDS, "all kinds", "seen popular", "heldout all", "says yes"):
        assert words in text and words in markdown
    assert "| seen all | 0.500 | - | 0.000 | - | 0.000 | 0 |" in markdown
    assert "expected" in markdown and "- answers: greedy" in markdown


@pytest.mark.parametrize(
    ("field", "value"), [("questions_per_kind", 1), ("image_size", 8), ("kinds", ()), ("kinds", ("x",))]
)
def test_a_plan_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        QuestionPlan(**{field: value})

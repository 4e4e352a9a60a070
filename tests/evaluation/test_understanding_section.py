from tests.evaluation.answerers import Looker
from tests.evaluation.test_report import Page
from tokenflow.evaluation.question_answering import QuestionPlan, answer_questions, score_answers
from tokenflow.evaluation.report import Number, Report
from tokenflow.evaluation.understanding_section import understanding_section


def some_result(**changes):
    plan = QuestionPlan(**{"questions_per_kind": 6, "cards": 2, **changes})
    return score_answers(plan, answer_questions(Looker(blind_to=("red", "green")), plan))


def page_of(result, *arguments, **options):
    report = Report("t")
    understanding_section(report, result, *arguments, **options)
    return Page(report.html())


def test_cards_show_picture_question_expected_and_given_answer():
    result = some_result()
    page = page_of(result)
    assert sum(tag == "img" for tag, _ in page.tags) == len(result.cards) == 20
    for card in result.cards:
        mark = "✓" if card.right else "✗"
        assert f"{mark} {card.question} expected: {card.expected}; given: {card.given or '(nothing)'}" in page.text
    assert {True, False} == {card.right for card in result.cards}


def test_targets_are_marked_and_tables_have_kinds_and_popes_sets():
    page = page_of(some_result(), targets={"overall": 0.01, "heldout": 0.999}, extra=[Number("Minutes", 3.0)])
    marks = [a["class"] for _, a in page.tags if a.get("class", "").startswith("mark")]
    assert marks == ["mark good", "mark bad"]
    for words in ("all kinds", "what colour (held-out pair)", "adversarial", "share of yes", "Minutes"):
        assert words in page.text, words


def test_every_stage_has_its_curves():
    rows = [{"step": step, "loss": 2.0 - step, "accuracy": 0.1, "evaluation/loss": 2.5} for step in range(3)]
    page = page_of(some_result(), {"alignment": rows, "tuning": rows[:2]})
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert "Loss, alignment" in page.text and "Tokens predicted right, tuning" in page.text


def test_without_cards_existence_and_runs_only_the_table_is_left():
    page = page_of(some_result(kinds=("colour", "count"), cards=0))
    assert not [tag for tag, _ in page.tags if tag in ("img", "svg")]
    assert "count" in page.text and "adversarial" not in page.text

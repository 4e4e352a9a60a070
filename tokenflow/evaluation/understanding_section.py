"""The report's section on seeing: pictures with questions and answers, exact match by kind, POPE's measures, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenflow.evaluation.question_answering import QUIZ_SPLITS, Card, QuestionResult
from tokenflow.evaluation.question_tables import existence_rows, kind_rows
from tokenflow.evaluation.report import Number, PictureRow, Report

_KIND_NAMES = {
    "colour": "what colour",
    "shape": "what shape",
    "count": "how many",
    "where": "where",
    "exists": "is there",
}
_SPLIT_NAMES = {"seen": "", "heldout": " (held-out pair)"}


def understanding_section(
    report: Report,
    result: QuestionResult,
    metrics: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    *,
    title: str = "Seeing: questions and answers",
    intro: str = "",
    targets: Mapping[str, float] | None = None,
    extra: Sequence[Number] = (),
) -> None:
    """Key numbers, cards of picture, question, expected and given answer, tables, and curves.

    Args:
        report: Where the section goes.
        result: Of `score_answers`.
        metrics: {stage: rows of its `read_metrics`}, a chart of the loss each.
        title: Of the section.
        intro: Below the title.
        targets: By metric: `overall`, `heldout`.
        extra: More key numbers.
    """
    report.section(title, intro)
    report.numbers([*_key_numbers(result, targets or {}), *extra])
    rows = [
        row
        for kind in result.plan.kinds
        for split in QUIZ_SPLITS
        if (row := _row(result.cards, kind, split)) is not None
    ]
    if rows:
        report.pictures(rows, "Questions and answers", "the first questions of each kind, not chosen")
    header = ["kind", "seen", "± error", "held out", "± error"]
    report.table(header, kind_rows(result), "Share of answers that are right word for word")
    if result.existence:
        header = ["pairs", "set", "accuracy", "precision", "recall", "F1", "share of yes", "unclear"]
        names = {"seen": "seen", "heldout": "held out"}
        rows_of_existence = [[names[split], *rest] for split, *rest in existence_rows(result)]
        report.table(header, rows_of_existence, "Existence as POPE scores it; half of the right answers are yes")
    for stage, found in (metrics or {}).items():
        understanding_curves(report, found, stage=stage)


def understanding_curves(report: Report, metrics: Sequence[Mapping[str, Any]], *, stage: str = "") -> None:
    """Loss and share of right tokens over a run; charts whose metrics never occur are left out."""
    names = {name for row in metrics for name in row}
    ending = f", {stage}" if stage else ""
    smooth = 0.9 if len(metrics) >= 50 else 0.0
    for key, title, unit in (("loss", "Loss", "nats a token"), ("accuracy", "Tokens predicted right", "share")):
        lines = {key: "training", f"evaluation/{key}": "held back"}
        keys = {name: label for name, label in lines.items() if name in names}
        if keys:
            report.curves(metrics, keys, f"{title}{ending}", unit, smooth=smooth)


def _key_numbers(result: QuestionResult, targets: Mapping[str, float]) -> list[Number]:
    found = result.metrics
    names = {"overall": "Questions answered, seen pairs", "heldout": "Questions answered, held-out pairs"}
    numbers = [
        Number(name, found[key], target=targets.get(key), note=f"± {found[f'{key}_error']:.3f}")
        for key, name in names.items()
    ]
    if "seen/pope_f1" in found:
        numbers.append(Number("Existence F1 (as POPE)", found["seen/pope_f1"], note="seen pairs"))
    return numbers


def _row(cards: Sequence[Card], kind: str, split: str) -> PictureRow | None:
    chosen = [card for card in cards if (card.kind, card.split) == (kind, split)]
    if not chosen:
        return None
    captions = [
        f"{'✓' if card.right else '✗'} {card.question} expected: {card.expected}; given: {card.given or '(nothing)'}"
        for card in chosen
    ]
    return PictureRow(f"{_KIND_NAMES[kind]}{_SPLIT_NAMES[split]}", [card.picture for card in chosen], captions)

"""Results of the built-in world's questions on a terminal and as Markdown."""

from typing import Any

from tokenflow.evaluation.paper_generation import aligned, markdown
from tokenflow.evaluation.question_answering import QUIZ_SPLITS, QuestionResult

_MEASURES = ("accuracy", "precision", "recall", "f1", "yes_share", "unclear")


def kind_rows(result: QuestionResult) -> list[list[Any]]:
    """[kind, seen, its error, held out, its error] of every kind and of all: plain values."""
    rows = []
    for kind in (*result.plan.kinds, "all kinds"):
        row: list[Any] = [kind]
        for split in QUIZ_SPLITS:
            part = result.overall(split) if kind == "all kinds" else result.kinds[split][kind]
            row += [part.value, part.error]
        rows.append(row)
    return rows


def existence_rows(result: QuestionResult) -> list[list[Any]]:
    """[split, set, accuracy, precision, recall, F1, share of yes, unclear answers]: plain values; None is undefined."""
    return [
        [split, name, score.accuracy.value, *(getattr(score, measure) for measure in _MEASURES[1:])]
        for split, sets in result.existence.items()
        for name, score in sets.items()
    ]


def kind_cells(result: QuestionResult) -> list[list[str]]:
    """Cells of the table by kind, the header first."""
    rows = [
        [kind, f"{seen:.3f} ± {error:.3f}", f"{heldout:.3f} ± {heldout_error:.3f}"]
        for kind, seen, error, heldout, heldout_error in kind_rows(result)
    ]
    return [["kind", "seen", "held out"], *rows]


def existence_cells(result: QuestionResult) -> list[list[str]]:
    """Cells of POPE's table, the header first."""
    rows = [
        [f"{split} {name}", *("-" if value is None else f"{value:.3f}" for value in values), str(unclear)]
        for split, name, *values, unclear in existence_rows(result)
    ]
    return [["existence", "accuracy", "precision", "recall", "F1", "says yes", "unclear"], *rows]


def questions_text(result: QuestionResult) -> str:
    """Both tables for a terminal."""
    tables = [kind_cells(result), *([existence_cells(result)] if result.existence else [])]
    return "\n\n".join(map(aligned, tables))


def questions_markdown(result: QuestionResult, *, title: str, protocol: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    parts = [f"# {title}", "Share of answers that are right word for word, ± one standard error."]
    parts.append(markdown(kind_cells(result)))
    if result.existence:
        parts += ["## Existence, as POPE scores it", markdown(existence_cells(result))]
    cards = "\n".join(
        f"- {card.question} expected {card.expected}, given {card.given or 'nothing'} ({card.kind}, {card.split})"
        for card in result.cards
    )
    how = "\n".join(f"- {name}: {value}" for name, value in protocol.items())
    return "\n\n".join([*parts, "## Questions", cards, "## Protocol", how]) + "\n"

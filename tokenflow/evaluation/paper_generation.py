"""The paper's text-to-image figures, to be read beside ours.

Source: TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation, arXiv 2412.03069v2, Table 10
(GenEval by kind, DPG-Bench by category; its overall columns are Table 4's) and Table 6 (sampling).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.evaluation.measure import NOT_MEASURED

Benchmark = Literal["geneval", "dpg"]

COLUMNS: dict[Benchmark, tuple[str, ...]] = {
    "geneval": ("overall", "single_object", "two_object", "counting", "colors", "position", "color_attr"),
    "dpg": ("overall", "global", "entity", "attribute", "relation", "other"),
}
"""Columns under the evaluators' own names."""

SOURCE = "arXiv 2412.03069v2, Table 10"


@dataclass(frozen=True, kw_only=True)
class PaperScores:
    """One row of Table 10; empty where it has dashes."""

    model: str
    geneval: tuple[float, ...] = ()
    """As COLUMNS["geneval"], or the overall score alone."""
    dpg: tuple[float, ...] = ()
    """As COLUMNS["dpg"]."""


PAPER_SCORES: tuple[PaperScores, ...] = (
    PaperScores(
        model="SD v1.5",
        geneval=(0.43, 0.97, 0.38, 0.35, 0.76, 0.04, 0.06),
        dpg=(63.18, 74.63, 74.23, 75.39, 73.49, 67.81),
    ),
    PaperScores(model="DALL-E 2", geneval=(0.52, 0.94, 0.66, 0.49, 0.77, 0.10, 0.19)),
    PaperScores(model="SD v2.1", geneval=(0.50, 0.98, 0.51, 0.44, 0.85, 0.07, 0.17)),
    PaperScores(
        model="SDXL",
        geneval=(0.55, 0.98, 0.74, 0.39, 0.85, 0.15, 0.23),
        dpg=(74.65, 83.27, 82.43, 80.91, 86.76, 80.41),
    ),
    PaperScores(
        model="PixArt-alpha",
        geneval=(0.48, 0.98, 0.50, 0.44, 0.80, 0.08, 0.07),
        dpg=(71.11, 74.97, 79.32, 78.60, 82.57, 76.96),
    ),
    PaperScores(
        model="DALL-E 3 (GenEval rewritten)",
        geneval=(0.67, 0.96, 0.87, 0.47, 0.83, 0.43, 0.45),
        dpg=(83.50, 90.97, 89.61, 88.39, 90.58, 89.83),
    ),
    PaperScores(
        model="Show-o",
        geneval=(0.53, 0.95, 0.52, 0.49, 0.82, 0.11, 0.28),
        dpg=(67.27, 79.33, 75.44, 78.02, 84.45, 60.80),
    ),
    PaperScores(model="Transfusion", geneval=(0.63,)),
    PaperScores(model="Chameleon", geneval=(0.39,)),
    PaperScores(
        model="LlamaGen",
        geneval=(0.32, 0.71, 0.34, 0.21, 0.58, 0.07, 0.04),
        dpg=(64.84, 81.76, 75.43, 76.17, 84.76, 58.40),
    ),
    PaperScores(
        model="EMU3",
        geneval=(0.54, 0.98, 0.71, 0.34, 0.81, 0.17, 0.21),
        dpg=(80.60, 85.21, 86.68, 86.84, 90.22, 83.15),
    ),
    PaperScores(
        model="VAR tokenizer, same training",
        geneval=(0.53, 0.95, 0.60, 0.41, 0.81, 0.16, 0.24),
        dpg=(71.08, 77.51, 78.17, 77.80, 85.80, 62.00),
    ),
    PaperScores(
        model="TokenFlow",
        geneval=(0.55, 0.97, 0.66, 0.40, 0.84, 0.17, 0.26),
        dpg=(73.38, 78.72, 79.22, 81.29, 85.22, 71.20),
    ),
    PaperScores(model="TokenFlow, prompts rewritten", geneval=(0.63, 0.93, 0.72, 0.45, 0.82, 0.45, 0.42)),
)


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """One row of Table 6: the 7B model under one way to sample."""

    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    geneval: float
    image_reward: float
    """Mean over 10,000 prompts of COCO's validation set."""


TABLE_6: tuple[SamplingRow, ...] = (
    SamplingRow(top_k=(1200,), top_p=(0.8,), geneval=0.502, image_reward=0.722),
    SamplingRow(top_k=(1200, 1), top_p=(0.8, 0.0), geneval=0.541, image_reward=0.806),
    SamplingRow(top_k=(1200, 10), top_p=(0.8, 0.8), geneval=0.531, image_reward=0.799),
    SamplingRow(top_k=(1200, 100), top_p=(0.8, 0.8), geneval=0.529, image_reward=0.745),
    SamplingRow(top_k=(1200, 100, 1), top_p=(0.8, 0.8, 0.0), geneval=0.553, image_reward=0.825),
)


def beside_ours(benchmark: Benchmark, *, name: str, scores: Mapping[str, float | str], caution: str) -> dict[str, Any]:
    """The paper's rows and ours: plain values, for `result.json` and the two printed forms.

    `scores` has `overall` and the evaluator's own names; what is missing was not measured. `caution` says what to know
    before comparing.
    """
    columns = COLUMNS[benchmark]
    rows = [
        {"model": row.model, **dict(zip(columns, getattr(row, benchmark), strict=False))}
        for row in PAPER_SCORES
        if getattr(row, benchmark)
    ]
    ours = {"model": name, **{column: scores.get(column, NOT_MEASURED) for column in columns}}
    return {"source": SOURCE, "columns": list(columns), "rows": rows, "ours": ours, "caution": caution}


def as_text(table: Mapping[str, Any]) -> str:
    """The rows as aligned columns, ours last, and below them what to know before comparing."""
    return f"{aligned(_cells(table))}\n{table['source']}. {table['caution']}"


def as_markdown(table: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    return f"{markdown(_cells(table))}\n\n{table['source']}. {table['caution']}\n"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns for a terminal: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, as a Markdown table."""
    header, *rows = lines
    ruled = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def _cells(table: Mapping[str, Any]) -> list[list[str]]:
    columns = table["columns"]
    rows = [
        [row["model"], *(_number(row.get(column)) for column in columns)] for row in [*table["rows"], table["ours"]]
    ]
    return [["model", *columns], *rows]


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.2f}"

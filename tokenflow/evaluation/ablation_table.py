"""Tables 1, 8 and 9 in small: one language model on several kinds of visual features, over seeds, the paper beside."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.evaluation.measure import NOT_MEASURED
from tokenflow.evaluation.paper_generation import aligned, markdown
from tokenflow.evaluation.paper_understanding import TABLE_1, TABLE_8, TABLE_9, Column
from tokenflow.evaluation.report import Number, Report

Variant = Literal["tokenflow", "pixel_only", "semantic_only", "teacher", "all_scales", "residuals", "semantic"]
VARIANTS: dict[Variant, str] = {
    "tokenflow": "TokenFlow, last scale",
    "pixel_only": "pixel-only codes",
    "semantic_only": "semantic-only codes",
    "teacher": "teacher, continuous",
    "all_scales": "TokenFlow, all scales",
    "residuals": "TokenFlow, residuals of all scales",
    "semantic": "TokenFlow, semantic half",
}
"""What the language model sees; the last three are further rows of Table 8."""
MEASURES: dict[str, str] = {"overall": "seen", "heldout": "held out"}
"""Of `QuestionResult.metrics`: exact match on colour-shape pairs that training shows, and on others."""
PAPER_COLUMNS: dict[Column, str] = {"mme_perception": "MME-P", "seed": "SEEDB", "textvqa": "TQA"}
"""What Tables 1, 8 and 9 have in common."""
_SOURCE = "arXiv 2412.03069v2"
_CAUTION = (
    "Ours is exact match on the built-in world's questions, the paper's are benchmarks within LLaVA-1.5 (Vicuna-13B): "
    "only the order of rows can be compared."
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One measure of one variant over seeds."""

    values: tuple[float, ...]
    """In the order of the seeds."""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values is empty; expected the result of one seed at least")

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1 in the denominator); None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Summaries = Mapping[Variant, Mapping[str, Summary]]


def summarise(results: Mapping[Variant, Sequence[Mapping[str, float]]]) -> Summaries:
    """{variant: {measure: summary}} of {variant: metrics of each seed}.

    Raises:
        ValueError: An unknown variant, or one without results.
    """
    if unknown := sorted(set(results) - set(VARIANTS)):
        raise ValueError(f"unknown variant {unknown[0]!r}; expected one of {', '.join(VARIANTS)}")
    return {
        variant: {name: Summary(values=tuple(row[name] for row in results[variant])) for name in MEASURES}
        for variant in VARIANTS
        if variant in results
    }


def ablation_metrics(summaries: Summaries) -> dict[str, float]:
    """Flat numbers: `understanding.NAME`, `understanding.NAME_spread`, and both once more as `.heldout`."""
    metrics = {}
    for variant, measures in summaries.items():
        for measure, summary in measures.items():
            ending = "" if measure == "overall" else f".{measure}"
            metrics[f"understanding.{variant}{ending}"] = summary.mean
            if summary.spread is not None:
                metrics[f"understanding.{variant}_spread{ending}"] = summary.spread
    return metrics


def missed_lead(summaries: Summaries, *, ahead: Variant = "tokenflow", of: Variant = "pixel_only") -> str | None:
    """In words, why one variant is not ahead of another beyond the spread; None where it is.

    Ahead: the difference of the means of exact match on seen pairs is more than both spreads together.
    """
    first, second = summaries[ahead]["overall"], summaries[of]["overall"]
    if first.spread is None or second.spread is None:
        return f"understanding.{ahead} and understanding.{of} have one seed each; a spread needs two"
    lead, spread = first.mean - second.mean, first.spread + second.spread
    if lead > spread:
        return None
    return (
        f"understanding.{ahead} {first.mean:.3f} ± {first.spread:.3f} is not ahead of understanding.{of} "
        f"{second.mean:.3f} ± {second.spread:.3f} beyond their spread ({lead:+.3f}, needed more than {spread:.3f})"
    )


def paper_rows() -> dict[Variant, tuple[str, Mapping[Column, float]]]:
    """{variant: (name and table of the paper's row, its scores)}: B, 224 pixels, the nearest to each of ours."""
    of_features = {row.features: row.scores for row in TABLE_8}
    of_encoder = {row.encoder: row.scores for row in TABLE_1}
    teacher = next(row for row in TABLE_9 if row.model == "CLIP ViT-B/14")
    rows: dict[Variant, tuple[str, Mapping[Column, float]]] = {
        "tokenflow": ("TokenFlow-B, last scale (Table 8)", of_features["last_scale"]),
        "pixel_only": ("VQGAN (Table 1)", of_encoder["VQGAN"]),
        "semantic_only": ("VQKD (Table 1)", of_encoder["VQKD"]),
        "teacher": ("CLIP ViT-B/14 (Tables 1, 9)", teacher.scores),
    }
    for features in ("all_scales", "residuals", "semantic"):
        rows[features] = (f"TokenFlow-B, {features.replace('_', ' ')} (Table 8)", of_features[features])
    return rows


def ablation_text(summaries: Summaries) -> str:
    """For a terminal."""
    return f"{aligned(_cells(summaries))}\n{_SOURCE}. {_CAUTION}"


def ablation_markdown(summaries: Summaries, *, protocol: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    how = "\n".join(f"- {name}: {value}" for name, value in protocol.items())
    parts = [
        "# What the language model sees",
        "Exact match on the built-in world's questions, mean ± standard deviation over seeds.",
        markdown(_cells(summaries)),
        f"{_SOURCE}. {_CAUTION}",
        f"## Protocol\n\n{how}",
    ]
    return "\n\n".join(parts) + "\n"


def ablation_section(report: Report, summaries: Summaries, *, protocol: Mapping[str, Any]) -> None:
    """The same as a section of a page."""
    report.section("What the language model sees", "One language model, one recipe, several kinds of features.")
    report.numbers(
        [
            Number(VARIANTS[variant], measures["overall"].mean, note=_note(measures["overall"]))
            for variant, measures in summaries.items()
        ]
    )
    header, *rows = _cells(summaries)
    report.table(header, rows, "Exact match, mean ± standard deviation over seeds; the paper's nearest row beside")
    report.text(f"{_SOURCE}. {_CAUTION}")
    report.table(["how", ""], [[name, str(value)] for name, value in protocol.items()], "Protocol")


def _cells(summaries: Summaries) -> list[list[str]]:
    paper = paper_rows()
    header = ["features", "seeds", *MEASURES.values(), "paper", *PAPER_COLUMNS.values()]
    return [header] + [
        [
            VARIANTS[variant],
            str(len(measures["overall"].values)),
            *(_shown(measures[name]) for name in MEASURES),
            paper[variant][0],
            *(_score(paper[variant][1].get(column)) for column in PAPER_COLUMNS),
        ]
        for variant, measures in summaries.items()
    ]


def _score(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.1f}"


def _shown(summary: Summary) -> str:
    return f"{summary.mean:.3f}" if summary.spread is None else f"{summary.mean:.3f} ± {summary.spread:.3f}"


def _note(summary: Summary) -> str:
    return "one seed" if summary.spread is None else f"± {summary.spread:.3f} over {len(summary.values)} seeds"

"""Results of lmms-eval beside the paper's Table 3."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenflow.evaluation.paper_understanding import Column

CAUTION = (
    "Ours by lmms-eval. The paper does not name the version, the splits or the prompts it used; here VQAv2 and TextVQA "
    "are the validation sets, MMBench is English dev, POPE is F1, MM-Vet and MMBench are marked by a judge model."
)


@dataclass(frozen=True, kw_only=True)
class LmmsMetric:
    """Where a number of the table lies in lmms-eval's results."""

    task: str
    metrics: tuple[str, ...]
    """Added up."""
    scale: float = 1.0
    """Times this it is as the paper prints it."""


LMMS_METRICS: dict[Column, LmmsMetric] = {
    "seed": LmmsMetric(task="seedbench", metrics=("seed_image",), scale=100),
    "mmvet": LmmsMetric(task="mmvet", metrics=("gpt_eval_score",)),
    "pope": LmmsMetric(task="pope", metrics=("pope_f1_score",), scale=100),
    "vqav2": LmmsMetric(task="vqav2_val", metrics=("exact_match",), scale=100),
    "gqa": LmmsMetric(task="gqa", metrics=("exact_match",), scale=100),
    "textvqa": LmmsMetric(task="textvqa_val", metrics=("exact_match",), scale=100),
    "ai2d": LmmsMetric(task="ai2d", metrics=("exact_match",), scale=100),
    "realworldqa": LmmsMetric(task="realworldqa", metrics=("exact_match",), scale=100),
    "mmmu": LmmsMetric(task="mmmu_val", metrics=("mmmu_acc",), scale=100),
    "mmbench": LmmsMetric(task="mmbench_en_dev", metrics=("gpt_eval_score",)),
    "mme": LmmsMetric(task="mme", metrics=("mme_perception_score", "mme_cognition_score")),
    "mme_perception": LmmsMetric(task="mme", metrics=("mme_perception_score",)),
}
"""By the columns of the paper's Table 3."""


def lmms_scores(results: dict[str, Any]) -> dict[Column, float]:
    """The columns of Table 3 that lmms-eval's results have: {task: {"metric,filter": value}}."""
    found: dict[Column, float] = {}
    for column, place in LMMS_METRICS.items():
        values = [_value(results.get(place.task, {}), metric) for metric in place.metrics]
        if all(value is not None for value in values):
            found[column] = sum(value for value in values if value is not None) * place.scale
    return found


def read_lmms_scores(paths: list[Path]) -> dict[Column, float]:
    """The columns of Table 3 in one or more `*_results.json` files of lmms-eval; later files win.

    Raises:
        ValueError: A file has no results.
    """
    scores: dict[Column, float] = {}
    for path in paths:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or "results" not in content:
            raise ValueError(f"{path} has no results; expected lmms-eval's *_results.json")
        scores |= lmms_scores(content["results"])
    return scores


def _value(measures: dict[str, Any], metric: str) -> float | None:
    """A metric under any filter; None where it was not measured."""
    for name, value in measures.items():
        if name.partition(",")[0] == metric and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None

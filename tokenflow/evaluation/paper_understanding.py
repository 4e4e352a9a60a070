"""The paper's figures on multimodal understanding, to be read beside ours.

Source: TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation, arXiv 2412.03069v2, Table 3
(benchmarks), Table 8 (which features the language model sees), Table 9 (discrete codes against their teachers), Table 1
(kinds of visual encoder).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.evaluation.measure import NOT_MEASURED
from tokenflow.evaluation.paper_generation import aligned, markdown

Column = Literal[
    "seed",
    "mmvet",
    "pope",
    "vqav2",
    "gqa",
    "textvqa",
    "ai2d",
    "realworldqa",
    "mmmu",
    "mmbench",
    "mme",
    "mme_perception",
]
COLUMNS: dict[Column, str] = {
    "seed": "SEEDB",
    "mmvet": "MMV",
    "pope": "POPE",
    "vqav2": "VQAv2",
    "gqa": "GQA",
    "textvqa": "TQA",
    "ai2d": "AI2D",
    "realworldqa": "RWQA",
    "mmmu": "MMMU",
    "mmbench": "MMB",
    "mme": "MME",
    "mme_perception": "MME-P",
}
"""Our names of the benchmarks, and the paper's."""
AVERAGE = "Avg."
MME_SCALE = 20.0
"""MME-Perception is divided by this before the average is taken."""
Source = Literal["Table 1", "Table 3", "Table 8", "Table 9"]
_DASH = None


@dataclass(frozen=True, kw_only=True)
class PaperScores:
    """One row; a benchmark that the paper leaves out is absent."""

    model: str
    language: str
    """The language model it is attached to."""
    resolution: int | None
    """Side of the pictures, in pixels."""
    visual: Literal["continuous", "discrete"]
    scores: dict[Column, float]
    average: float | None = None
    """As printed: over all benchmarks, MME-Perception / 20 and not MME."""


def _row(
    model: str, language: str, resolution: int | None, visual: str, *values: float | None, average: float | None = None
) -> PaperScores:
    assert len(values) == len(COLUMNS), model
    scores = {name: value for name, value in zip(COLUMNS, values, strict=True) if value is not None}
    return PaperScores(
        model=model, language=language, resolution=resolution, visual=visual, scores=scores, average=average
    )


_V13, _V7, _L7, _ = "Vicuna-13B", "Vicuna-7B", "Llama-2-7B", _DASH
_IN, _OUT = "continuous", "discrete"
# fmt: off
TABLE_3: tuple[PaperScores, ...] = (
    _row("InstructBLIP", _V13, 224, _IN, 58.8, 25.6, 78.9, _, 49.5, 50.7, _, _, _, 36.0, _, 1212.8),
    _row("MiniGPT-4", _V13, 224, _IN, _, _, _, _, _, _, _, _, _, _, 1158.7, 866.6),
    _row("BLIP-2", _V13, 224, _IN, 46.4, 22.4, _, _, _, 42.5, _, _, 26.6, _, _, 1293.8),
    _row("ShareGPT4V", _V7, 336, _IN, 69.7, 37.6, _, 80.6, 63.3, 60.4, 58.0, 54.9, 37.2, 68.8, 1943.8, 1567.4),
    _row("NExT-GPT", _V7, 224, _IN, 57.5, _, _, 66.0, _, _, _, _, _, 58.0, _, _),
    _row("Qwen-VL-Chat", "Qwen-7B", 448, _IN, 57.7, _, _, 78.2, 57.5, _, _, _, _, _, 1848.3, 1487.5),
    _row("Janus", "DeepSeek-LLM-1.3B", 384, _IN, 63.7, 34.3, 87.0, 77.3, 59.1, _, _, _, 30.5, 69.4, _, 1338.0),
    _row("LLaVA-1.5", _V13, 336, _IN, 68.1, 36.1, 85.9, 80.0, 63.3, 61.3, 61.1, 55.3, 36.4, 67.7, 1826.7, 1531.3,
         average=62.9),
    _row("Gemini-Nano-1", "1.8B from scratch", None, _OUT, _, _, _, 62.7, _, _, _, _, 26.3, _, _, _),
    _row("Chameleon", "34B from scratch", 256, _OUT, _, _, _, 69.6, _, _, _, _, _, _, _, _),
    _row("LWM", _L7, 256, _OUT, _, 9.6, 75.2, 55.8, 44.8, 18.8, _, _, _, _, _, _),
    _row("SEED-LLaMA", "Llama-2-13B", 224, _OUT, 53.7, _, _, 63.4, _, _, _, _, _, _, _, _),
    _row("Show-o", "Phi-1.5-1.3B", 256, _OUT, _, _, 80.0, 69.4, 58.0, _, _, _, 26.7, _, _, 1097.2),
    _row("VILA-U 256", _L7, 256, _OUT, 56.3, 27.7, 83.9, 75.3, 58.3, 48.3, _, _, _, _, _, 1336.2),
    _row("VILA-U 384", _L7, 384, _OUT, 59.0, 33.5, 85.8, 79.4, 60.8, 60.8, _, _, _, _, _, 1401.8),
    _row("EMU3", "8B from scratch", 512, _OUT, 68.2, 37.2, 85.2, 75.1, 60.3, 64.7, 70.0, 57.4, 31.6, 58.5, 1509.9,
         1243.8, average=60.9),
    _row("TokenFlow-B", _V13, 224, _OUT, 60.4, 22.4, 84.0, 70.2, 59.3, 49.8, 54.2, 49.4, 34.2, 55.3, 1660.4, 1353.6,
         average=55.2),
    _row("TokenFlow-L", _V13, 256, _OUT, 62.6, 27.7, 85.0, 73.9, 60.3, 54.1, 56.6, 49.2, 34.4, 60.3, 1622.9, 1365.4,
         average=57.5),
    _row("TokenFlow-XL", _V13, 384, _OUT, 68.7, 40.7, 86.8, 77.9, 62.7, 61.5, 66.7, 53.7, 38.7, 68.9, 1840.9, 1545.9,
         average=64.0),
    _row("TokenFlow-XL", "Qwen2.5-14B", 384, _OUT, 72.6, 48.2, 87.8, 77.6, 62.5, 62.3, 75.8, 56.6, 43.2, 76.8, 1922.2,
         1551.1, average=67.4),
)
"""B and L on LLaVA's data, XL on Cambrian's; EMU3's MME is the authors' own measurement with lmms-eval."""
TABLE_9: tuple[PaperScores, ...] = (
    _row("CLIP ViT-B/14", _V13, 224, _IN, 64.1, 30.8, 85.1, 73.8, 61.3, 53.4, 57.8, 50.9, 35.1, 62.0, 1737.0, 1460.9,
         average=58.9),
    _row("ViTamin-XL", _V13, 256, _IN, 65.7, 34.6, 85.8, 76.8, 62.6, 57.4, 59.4, 54.4, 35.0, 66.4, 1839.1, 1514.5,
         average=61.3),
    _row("SigLIP-SO400M", _V13, 384, _IN, 67.5, 38.1, 86.5, 78.6, 63.8, 62.2, 59.5, 57.4, 35.4, 68.3, 1802.1, 1488.2,
         average=62.9),
    _row("TokenFlow-B", _V13, 224, _OUT, 60.4, 22.4, 84.0, 70.2, 59.3, 49.8, 54.2, 49.4, 34.2, 55.3, 1660.4, 1353.6,
         average=55.2),
    _row("TokenFlow-L", _V13, 256, _OUT, 62.6, 27.7, 85.0, 73.9, 60.3, 54.1, 56.6, 49.2, 34.4, 60.3, 1622.9, 1365.4,
         average=57.5),
    _row("TokenFlow-XL", _V13, 384, _OUT, 65.3, 41.2, 86.2, 76.6, 63.0, 57.5, 56.8, 53.3, 34.7, 62.7, 1794.4, 1502.3,
         average=61.1),
)
"""All on LLaVA-1.5's data; the first three rows are the teachers of the last three."""
# fmt: on
RETAINED: dict[str, float] = {"TokenFlow-B": 0.937, "TokenFlow-L": 0.938, "TokenFlow-XL": 0.971}
"""Table 9: share of the teacher's average that the codes keep, as printed."""


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """One row of Table 8: what the language model is given of an image."""

    features: Literal["all_scales", "residuals", "semantic", "last_scale"]
    """As the recipes call it."""
    scores: dict[Column, float]


def _features(name: Any, mme: float, perception: float, seed: float, textvqa: float) -> FeatureRow:
    return FeatureRow(
        features=name, scores={"mme": mme, "mme_perception": perception, "seed": seed, "textvqa": textvqa}
    )


TABLE_8: tuple[FeatureRow, ...] = (
    _features("all_scales", 1610.1, 1315.1, 59.6, 49.5),
    _features("residuals", 1527.5, 1216.5, 57.0, 48.1),
    _features("semantic", 1580.3, 1315.6, 60.1, 49.7),
    _features("last_scale", 1634.3, 1356.5, 59.9, 49.1),
)


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """One row of Table 1: a visual encoder within LLaVA-1.5."""

    encoder: str
    kind: Literal["semantic", "pixel"]
    visual: Literal["continuous", "discrete"]
    scores: dict[Column, float]


def _encoder(name: str, kind: Any, visual: Any, perception: float, seed: float, textvqa: float) -> EncoderRow:
    scores: dict[Column, float] = {"mme_perception": perception, "seed": seed, "textvqa": textvqa}
    return EncoderRow(encoder=name, kind=kind, visual=visual, scores=scores)


TABLE_1: tuple[EncoderRow, ...] = (
    _encoder("CLIP ViT-B/14", "semantic", "continuous", 1460.9, 64.1, 53.4),
    _encoder("VQGAN", "pixel", "discrete", 756.1, 38.2, 46.8),
    _encoder("VQGAN-LC", "pixel", "discrete", 744.8, 38.2, 45.7),
    _encoder("LFQ", "pixel", "discrete", 889.5, 41.1, 46.4),
    _encoder("VQKD", "semantic", "discrete", 1252.4, 57.8, 48.2),
)


def average(scores: Mapping[str, float | None]) -> float | None:
    """The paper's average: all benchmarks but MME, MME-Perception divided by 20; None unless all are there."""
    values = [scores.get(name) for name in COLUMNS if name not in ("mme", "mme_perception")]
    perception = scores.get("mme_perception")
    if perception is None or any(value is None for value in values):
        return None
    return (sum(value for value in values if value is not None) + perception / MME_SCALE) / (len(values) + 1)


def beside_ours(*, name: str, scores: Mapping[str, float], caution: str, source: Source = "Table 3") -> dict[str, Any]:
    """The paper's rows of Table 3 or 9 and ours: plain values, for `result.json` and the two printed forms.

    `scores` is by COLUMNS; what is missing was not measured. `caution` says what to know before comparing.
    """
    table = {"Table 3": TABLE_3, "Table 9": TABLE_9}.get(source)
    if table is None:
        raise ValueError(f"source is {source!r}; expected Table 3 or Table 9, which have every benchmark")
    rows: list[dict[str, Any]] = [
        {"model": f"{row.model}, {row.language}", "visual": row.visual, **row.scores, "average": row.average}
        for row in table
    ]
    ours: dict[str, Any] = {"model": name, **{column: scores.get(column, NOT_MEASURED) for column in COLUMNS}}
    found = average(scores)
    ours["average"] = NOT_MEASURED if found is None else found
    return {"source": f"arXiv 2412.03069v2, {source}", "rows": rows, "ours": ours, "caution": caution}


def as_text(table: Mapping[str, Any]) -> str:
    """The rows as aligned columns, ours last, and below them what to know before comparing."""
    return f"{aligned(_cells(table))}\n{table['source']}. {table['caution']}"


def as_markdown(table: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    return f"{markdown(_cells(table))}\n\n{table['source']}. {table['caution']}\n"


def _cells(table: Mapping[str, Any]) -> list[list[str]]:
    keys = [*COLUMNS, "average"]
    rows = [[row["model"], *(_number(row.get(key)) for key in keys)] for row in [*table["rows"], table["ours"]]]
    return [["model", *COLUMNS.values(), AVERAGE], *rows]


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.1f}"

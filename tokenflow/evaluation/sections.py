"""Ready sections of the report: what a stage shows, from its evaluation and its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenflow.evaluation.evaluate import EvaluationResult
from tokenflow.evaluation.grid import difference
from tokenflow.evaluation.report import Number, PictureRow, Report

NAMES: dict[str, tuple[str, str]] = {
    "psnr": ("PSNR", "dB"),
    "usage": ("Codebook usage", ""),
    "verifier": ("Objects read back", ""),
    "perplexity": ("Perplexity", ""),
    "ssim": ("SSIM", ""),
    "lpips": ("LPIPS", ""),
    "frechet_teacher": ("Fréchet distance, teacher", ""),
    "rfid": ("rFID", ""),
    "high_frequency_error": ("Fine-detail error", "of 255"),
    "ssim_authors": ("SSIM, authors' range", ""),
    "verifier_original": ("Objects read in originals", ""),
}
"""Metric -> (name on the page, unit), in the order of the page."""

CODE_MEASURES = frozenset({"usage", "perplexity", "verifier_original"})
"""What two decoders of the same codes share."""

LOWER_IS_BETTER = frozenset({"lpips", "frechet_teacher", "rfid", "high_frequency_error"})
CARDS = ("psnr", "usage", "verifier", "perplexity", "ssim", "lpips", "frechet_teacher", "high_frequency_error")
TERMS = (
    "reconstruction",
    "semantic",
    "perceptual",
    "codebook",
    "commitment",
    "entropy",
    "adversarial",
    "discriminator",
)
PICTURES = 8


def tokenizer_section(
    report: Report,
    result: EvaluationResult,
    metrics: Sequence[Mapping[str, Any]] = (),
    *,
    title: str = "Tokenizer",
    intro: str = "",
    targets: Mapping[str, float] | None = None,
    extra: Sequence[Number] = (),
    captions: Sequence[str] = (),
) -> None:
    """Key numbers, pictures, curves of a run (rows of `read_metrics`), codebook use, and the protocol."""
    report.section(title, intro)
    report.numbers([*key_numbers(result, targets or {}), *extra])
    originals, reconstructions = result.originals[:PICTURES], result.reconstructions[:PICTURES]
    rows = [
        PictureRow("original", originals, captions[:PICTURES]),
        PictureRow("reconstruction", reconstructions),
        PictureRow("difference ×4", difference(originals, reconstructions)),
    ]
    reference = str(result.protocol["reference"])
    report.pictures(rows, "Reconstructions", f"{reference}: the first ones in order, not chosen")
    training_curves(report, metrics)
    codebook_charts(report, result)
    report.table(["measure", "value", "how"], protocol_rows(result), "All measures, and how they were taken")


def decoder_section(
    report: Report,
    base: EvaluationResult,
    enhanced: EvaluationResult,
    metrics: Sequence[Mapping[str, Any]] = (),
    *,
    title: str = "Decoder",
    intro: str = "",
) -> None:
    """Two decoders of the same codes beside the originals, their measures, and the curves of the new one's run.

    Both results must come from the same pictures.

    Raises:
        ValueError: They do not.
    """
    if not np.array_equal(base.originals, enhanced.originals):
        raise ValueError("the two decoders were evaluated on different pictures; expected the same reference, in order")
    report.section(title, intro)
    report.numbers(
        [
            _compared(key, base.metrics[key], enhanced.metrics[key])
            for key in ("psnr", "lpips", "high_frequency_error", "verifier")
            if key in enhanced.metrics
        ]
    )
    originals = base.originals[:PICTURES]
    shown = {"base decoder": base.reconstructions[:PICTURES], "enhanced decoder": enhanced.reconstructions[:PICTURES]}
    rows = [PictureRow("original", originals)]
    rows += [PictureRow(name, pictures) for name, pictures in shown.items()]
    rows += [
        PictureRow(f"difference ×4, {name.split()[0]}", difference(originals, pictures))
        for name, pictures in shown.items()
    ]
    report.pictures(rows, "The same codes, two decoders", f"{base.protocol['reference']}: the first ones in order")
    if metrics:
        smooth = 0.9 if len(metrics) >= 50 else 0.0
        report.curves(metrics, {"loss": "total"}, "Decoder: loss", "weighted sum", smooth=smooth)
        curves = {"evaluation/psnr": "enhanced", "evaluation/psnr_base": "base"}
        report.curves(metrics, curves, "Decoder: PSNR on pictures held back", "dB")
    table = [
        [name, base.metrics[key], enhanced.metrics[key], "lower" if key in LOWER_IS_BETTER else "higher"]
        for key, (name, _) in NAMES.items()
        if key in enhanced.metrics and key not in CODE_MEASURES
    ]
    report.table(["measure", "base", "enhanced", "better is"], table, "All measures of both decoders")


def _compared(key: str, base: float | str, enhanced: float | str) -> Number:
    """A card of the enhanced decoder's measure whose target is the base decoder's."""
    name, unit = NAMES[key]
    measured = not isinstance(base, str)
    return Number(
        name,
        enhanced,
        unit=unit,
        target=base if measured else None,
        lower_is_better=key in LOWER_IS_BETTER,
        note="target: the base decoder" if measured else "why not: see stage 1",
    )


def key_numbers(result: EvaluationResult, targets: Mapping[str, float]) -> list[Number]:
    """Cards of the measures that matter, with targets where given and reasons where not measured."""
    missing, warnings = result.protocol["not_measured"], result.protocol["warnings"]
    numbers = []
    for key in CARDS:
        if key not in result.metrics:
            continue
        name, unit = NAMES[key]
        note = "why not: see below" if key in missing else _short_warning(warnings.get(key))
        if key == "perplexity":
            unit = f"of {result.histogram.shape[1]}"
        numbers.append(
            Number(
                name, result.metrics[key], unit=unit, target=targets.get(key), lower_is_better=key in LOWER_IS_BETTER,
                note=note,
            )
        )  # fmt: skip
    return numbers


def training_curves(report: Report, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss, its terms, PSNR and usage over a run; charts whose metrics never occur are left out."""
    seen = {name for row in metrics for name in row}
    smooth = 0.9 if len(metrics) >= 50 else 0.0
    if "loss" in seen:
        report.curves(metrics, {"loss": "total"}, "Loss", "weighted sum", smooth=smooth)
    terms = [term for term in TERMS if term in seen]
    if terms:
        report.curves(metrics, terms, "Loss terms", "weighted", log=True, smooth=smooth)
    quality = {key: name for key, name in (("psnr", "training"), ("evaluation/psnr", "held back")) if key in seen}
    if quality:
        report.curves(metrics, quality, "PSNR over the run", "dB")
    usage = {"evaluation/usage": "all scales"} | {
        key: f"scale {key.rsplit('_', 1)[1]}" for key in sorted(seen, key=_scale) if "evaluation/usage/scale_" in key
    }
    if usage.keys() & seen:
        report.curves(metrics, usage, "Codebook usage over the run", "share of codes in the window")


def codebook_charts(report: Report, result: EvaluationResult) -> None:
    """Usage and perplexity at each scale, and how evenly codes are used."""
    for key, percent in (("usage", True), ("perplexity", False)):
        values = {str(scale): result.metrics[f"{key}/scale_{scale}"] for scale in result.scales}
        label = (
            "share of codes seen; scale S has S×S codes a picture"
            if percent
            else "equally used codes that would be as diverse"
        )
        report.bars(
            values,
            f"Codebook {key} at each scale",
            label,
            percent=percent,
            maximum=1.0 if percent else None,
            xlabel="scale",
        )
    report.ranks(result.histogram.sum(0).tolist(), "How often each code is used")


def protocol_rows(result: EvaluationResult) -> list[tuple[str, Any, str]]:
    """(measure, value, how or why not) of every measure, then of the reference, crop and rounding."""
    protocol = result.protocol
    rows: list[tuple[str, Any, str]] = []
    for key, (name, _) in NAMES.items():
        if key in result.metrics:
            how = protocol["not_measured"].get(key) or ". ".join(
                str(part) for part in (protocol.get(key), protocol["warnings"].get(key)) if part
            )
            rows.append((name, result.metrics[key], how))
    versions = ", ".join(f"{name} {value}" for name, value in protocol["versions"].items())
    settings = {
        "Pictures": (protocol["images"], f"{protocol['reference']}, {protocol['image_size']} pixels square"),
        "Crop": ("", protocol["crop"]),
        "Rounding": ("", f"reconstructions {protocol['rounding']}, originals {protocol['reference_rounding']}"),
        "Versions": ("", versions),
    }
    return rows + [(name, value, how) for name, (value, how) in settings.items()]


def _short_warning(warning: str | None) -> str:
    return "" if warning is None else "few images: compare equal sets only"


def _scale(key: str) -> tuple[int, str]:
    tail = key.rsplit("_", 1)[-1]
    return (int(tail), key) if tail.isdigit() else (0, key)

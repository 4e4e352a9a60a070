"""Ready sections of the report: what a stage shows, from its evaluation and its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

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

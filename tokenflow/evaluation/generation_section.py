"""The report's section on text to image: prompts x pictures, shares by kind, samplers, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenflow.data.captions import PROMPT_KINDS
from tokenflow.evaluation.compositional import CompositionalResult
from tokenflow.evaluation.paper_generation import TABLE_6
from tokenflow.evaluation.report import Number, PictureRow, Report


def generation_section(
    report: Report,
    result: CompositionalResult,
    metrics: Sequence[Mapping[str, Any]] = (),
    *,
    title: str = "Text to image",
    intro: str = "",
    targets: Mapping[str, float] | None = None,
    extra: Sequence[Number] = (),
) -> None:
    """Key numbers, prompts x pictures with the verifier's marks, tables, and curves of a run (`read_metrics`).

    `targets` are by metric: `seen`, `heldout`, `single_step`, `multi_step`.
    """
    report.section(title, intro)
    report.numbers([*_key_numbers(result, targets or {}), *extra])
    rows = [
        PictureRow(
            f"{row.prompt}{' (held-out pair)' if row.split == 'heldout' else ''}",
            list(row.pictures),
            ["✓ read back" if mark else "✗ not read back" for mark in row.marks],
        )
        for row in result.gallery
    ]
    main = result.scores[0].setting
    how = f"{main.steps} sampling, guidance {main.guidance_scale:g}"
    report.pictures(rows, "Prompts and what was painted", f"the first prompt of each kind, not chosen; {how}")
    _tables(report, result)
    generation_curves(report, metrics)


def generation_curves(report: Report, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss and accuracy over a run, overall and by scale; charts whose metrics never occur are left out."""
    names = sorted({name for row in metrics for name in row})
    smooth = 0.9 if len(metrics) >= 50 else 0.0
    loss = {"loss": "training", "evaluation/loss": "held back"}
    charts = (
        ({key: name for key, name in loss.items() if key in names}, "Loss", "nats a code"),
        (_by_scale(names, "loss"), "Loss at each scale", "nats a code"),
        (
            {key: name for key, name in {"accuracy": "training", "evaluation/accuracy": "held back"}.items()
             if key in names},
            "Codes predicted right",
            "share",
        ),
        (_by_scale(names, "accuracy"), "Codes predicted right at each scale", "share"),
        ({key: key.split("/")[-1] for key in names if key in ("evaluation/seen", "evaluation/heldout")},
         "Prompts read back over the run", "share"),
    )  # fmt: skip
    for keys, chart_title, label in charts:
        if keys:
            report.curves(metrics, keys, chart_title, label, smooth=smooth)


def _key_numbers(result: CompositionalResult, targets: Mapping[str, float]) -> list[Number]:
    names = {
        "seen": "Prompts read back, seen pairs",
        "heldout": "Prompts read back, held-out pairs",
        "single_step": "Single-step sampling",
        "multi_step": f"Multi-step sampling ({result.multi_steps})",
    }
    metrics = result.metrics
    return [
        Number(name, metrics[key], target=targets.get(key), note=f"± {metrics[f'{key}_error']:.3f}")
        for key, name in names.items()
        if key in metrics
    ]


def _tables(report: Report, result: CompositionalResult) -> None:
    score = result.scores[0]
    rows = []
    for kind in (*PROMPT_KINDS, "all kinds"):
        row: list[Any] = [kind]
        for split in ("seen", "heldout"):
            part = score.overall(split) if kind == "all kinds" else score.kinds[split].get(kind)
            row += [None, None] if part is None else [part.value, part.error]
        rows.append(row)
    header = ["kind", "seen", "± error", "held out", "± error"]
    report.table(header, rows, "Share of prompts whose picture the verifier reads back exactly")
    header = ["steps", "guidance", "seen", "± error", "held out", "± error"]
    rows = [
        [row["steps"], row["guidance_scale"], row["seen"], row["seen_error"], row["heldout"], row["heldout_error"]]
        for row in result.rows()
    ]
    report.table(header, rows, "Steps a scale and guidance, on the same prompts")
    if result.gain is not None:
        report.text(
            f"Multi-step minus single-step on the seen prompts: {result.gain.value:+.3f} ± {result.gain.error:.3f}. "
            f"The paper's 7B model gains {TABLE_6[-1].geneval - TABLE_6[0].geneval:+.3f} on GenEval (Table 6)."
        )


def _by_scale(names: Sequence[str], measure: str) -> dict[str, str]:
    found = [name for name in names if name.startswith((f"{measure}/scale_", f"scale_{measure}/"))]
    order = sorted(found, key=lambda name: int("".join(filter(str.isdigit, name)) or 0))
    return {name: f"scale {name.rsplit('_', 1)[-1].rsplit('/', 1)[-1]}" for name in order}

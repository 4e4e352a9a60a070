"""The demo's page: pictures first, then curves and numbers, then how to look further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenflow.evaluation.compositional import CompositionalResult
from tokenflow.evaluation.evaluate import EvaluationResult
from tokenflow.evaluation.generation_section import generation_section
from tokenflow.evaluation.question_answering import QuestionResult
from tokenflow.evaluation.report import Number, Report, read_metrics
from tokenflow.evaluation.sections import decoder_section, tokenizer_section
from tokenflow.evaluation.understanding_section import understanding_section

SEEING = ("language", "align", "names", "corners", "sides", "sft")
"""The stages of seeing, in order."""
GATES: dict[str, float] = {
    "tokenizer.psnr": 26.0,
    "tokenizer.usage": 0.95,
    "tokenizer.verifier": 0.95,
    "generation.seen": 0.65,
    "generation.heldout": 0.40,
    "understanding.overall": 0.8,
    "understanding.heldout": 0.6,
}
"""What the full demo must reach on scenes, prompts and colour-shape pairs that training never showed."""

GOALS: dict[str, float] = {
    "generation.seen": 0.75,
    "generation.heldout": 0.45,
    "understanding.overall": 0.90,
    "understanding.heldout": 0.75,
}
"""What it should reach one day; below them it says so."""

MUST_BEAT: dict[str, str] = {"decoder.psnr": "decoder.psnr_base"}
"""And which number must be above which other."""


def missed_gates(metrics: Mapping[str, Any]) -> list[str]:
    """What the full demo did not reach, in words."""
    below = [f"{name} {metrics[name]:.3f} < {least}" for name, least in GATES.items() if metrics[name] < least]
    beaten = [
        f"{name} {metrics[name]:.3f} is not above {base} {metrics[base]:.3f}"
        for name, base in MUST_BEAT.items()
        if metrics[name] <= metrics[base]
    ]
    single, multi, error = (
        metrics[f"generation.{name}"] for name in ("single_step", "multi_step", "single_step_error")
    )
    if multi < single - error:
        beaten.append(f"generation.multi_step {multi:.3f} is below single_step {single:.3f} by more than {error:.3f}")
    return below + beaten


def missed_goals(metrics: Mapping[str, Any]) -> list[str]:
    """The goals that are not reached yet, each with its number."""
    return [
        f"{name} {metrics[name]:.3f} of {goal}"
        for name, goal in GOALS.items()
        if name in metrics and metrics[name] < goal
    ]


def write_report(
    path: Path,
    *,
    runs: Path,
    results: Mapping[str, EvaluationResult],
    painted: CompositionalResult,
    answered: QuestionResult,
    metrics: Mapping[str, Any],
) -> Path:
    """Write the page from evaluations and from each stage's metrics.jsonl; returns its path."""
    minutes = metrics["minutes"]
    quick = " A quick run: few training steps, so expect blurred pictures." if metrics["quick"] else ""
    report = Report(
        "TokenFlow on your machine",
        f"Every stage really trained here, on the CPU, under DeepSpeed, in {minutes:.1f} minutes.{quick}",
        footer="Made by `make demo`. The same command lines with other recipes train the paper's models.",
    )
    _tokenizer(report, runs, results["tokenizer"], results["heldout"])
    decoder_section(
        report,
        results["tokenizer"],
        results["decoder"],
        read_metrics(runs / "decoder" / "metrics.jsonl"),
        title="Stage 2: a decoder of twice the size",
        intro=(
            "Residual blocks and channels of the pixel decoder are doubled and trained; everything else is frozen, so "
            "every picture keeps its codes, bit for bit. The larger decoder starts as the same function as the smaller "
            "one and learns detail from there."
        ),
    )
    generation_section(
        report,
        painted,
        read_metrics(runs / "generation" / "metrics.jsonl"),
        title="Stage 3: text to image",
        intro=(
            "A small Llama reads a caption and paints the codes scale by scale: 1, then 4, 16 and 64 of them at once. "
            "The verifier reads every picture back: right means these objects, these colours, this arrangement and "
            "nothing else. Held-out prompts name colour-shape pairs that no training picture showed."
        ),
        targets=_targets("generation"),
    )
    understanding_section(
        report,
        answered,
        {stage: read_metrics(runs / stage / "metrics.jsonl") for stage in SEEING},
        title="Stages 4 and 5: seeing",
        intro=(
            "A small language model, which has only read about this world, is given the same codes as features: first "
            "the projector learns what they mean from descriptions (align), then everything learns to answer "
            "questions: for colours and shapes first (names), then for the corner that an object is in (corners), "
            "for which of two is left and which right (sides), then of every kind (sft). Held-out questions are about "
            "colour-shape pairs that no training picture showed."
        ),
        targets=_targets("understanding"),
    )
    _teacher(report, runs)
    _photographs(report, runs, results["photographs"])
    _further(report, runs, metrics)
    return report.save(path)


def _tokenizer(report: Report, runs: Path, result: EvaluationResult, heldout: EvaluationResult) -> None:
    tokenizer_section(
        report,
        result,
        read_metrics(runs / "tokenizer" / "metrics.jsonl"),
        title="Stage 1: the tokenizer",
        intro=(
            "A picture becomes 85 codes on four scales; each code indexes a semantic and a pixel codebook at once. "
            "Below, pictures that training never showed, drawn back from nothing but their codes. An exact verifier "
            "then reads every shape, colour and place back from the reconstructions."
        ),
        targets=_targets("tokenizer"),
        extra=[
            Number("PSNR, unseen colour-shape pairs", heldout.metrics["psnr"], unit="dB"),
            Number("Objects read back, unseen pairs", heldout.metrics["verifier"]),
        ],
    )


def _targets(stage: str) -> dict[str, float]:
    wanted = GATES | GOALS
    return {name.split(".", 1)[1]: least for name, least in wanted.items() if name.startswith(f"{stage}.")}


def _teacher(report: Report, runs: Path) -> None:
    report.section(
        "The teacher",
        "The semantic branch learns to predict a frozen CLIP-style model. Here it is a small open_clip model, trained "
        "on the built-in world's captions first.",
    )
    rows = read_metrics(runs / "teacher" / "metrics.jsonl")
    report.curves(rows, {"loss": "contrastive loss"}, "Teacher: loss", "nats", smooth=0.6)
    report.curves(rows, {"accuracy": "right caption picked"}, "Teacher: accuracy within a batch", "share", smooth=0.6)


def _photographs(report: Report, runs: Path, result: EvaluationResult) -> None:
    tokenizer_section(
        report,
        result,
        read_metrics(runs / "photographs" / "metrics.jsonl"),
        title="A folder of photographs",
        intro=(
            "The same pipeline, trained from scratch on a plain folder of photographs given by --data (those that "
            "scikit-image and scikit-learn carry). A couple of minutes and some hundred crops cannot make a good "
            "tokenizer of photographs; watch the PSNR curve rise instead. The pictures shown are held out."
        ),
    )


def _further(report: Report, runs: Path, metrics: Mapping[str, Any]) -> None:
    report.section("Look further", "Metrics, parameters, system load and pictures of every stage are in MLflow.")
    report.code(
        f"mlflow ui --backend-store-uri sqlite:///{runs}/mlflow.db\n"
        f"tokenflow reconstruct YOUR.png --tokenizer {runs}/decoder/model\n"
        f'tokenflow generate "a red circle left of a blue square" --model {runs}/generation/model\n'
        f'tokenflow chat YOUR.png "what colour is the circle?" --model {runs}/sft/model\n'
        "tokenflow doctor"
    )
    rows = [[name.removeprefix("minutes."), value] for name, value in metrics.items() if name.startswith("minutes.")]
    report.table(["stage", "minutes"], rows, "Where the time went")

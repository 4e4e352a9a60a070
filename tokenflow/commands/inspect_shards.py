"""`tokenflow inspect-shards`: what is in a set of shards, or a folder, and whether training will read it."""

import argparse
import json
import logging
from pathlib import Path

from tokenflow.data.contents import Inspection
from tokenflow.data.files import write_json
from tokenflow.data.inspection import count, inspect
from tokenflow.data.training_check import TrainingCheck, check_training, too_many_unusable
from tokenflow.evaluation.inspection_page import contact_sheet, inspection_page, shares
from tokenflow.evaluation.measure import png_bytes, write_atomic
from tokenflow.evaluation.progress import EvaluationProgress

_NAMED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="PATH", help="shards, a pattern of them, or a folder of pictures")
    parser.add_argument(
        "--out", "--output", type=Path, metavar="DIR", help="also write index.html, contact_sheet.png, report.json"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON, nothing else")
    parser.add_argument("--workers", type=int, default=0, help="processes; the report is the same for any number")
    parser.add_argument("--headers", action="store_true", help="do not decode pictures: faster, finds little damage")
    parser.add_argument("--image_size", type=int, default=256, help="of the training that is tried (default: 256)")
    parser.add_argument("--batch_size", type=int, default=32, help="of the training that is tried (default: 32)")
    parser.add_argument("--all", action="store_true", help="the training loader reads a whole epoch, not one batch")
    parser.add_argument("--pictures", type=int, default=32, help="on the contact sheet (default: %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be looked at, then stop")


def run(arguments: argparse.Namespace) -> int:
    """Inspect; 0 when training reads it and manifests hold, else 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name, least in (("workers", 0), ("image_size", 8), ("batch_size", 1), ("pictures", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; expected at least {least}")
    samples = count(arguments.path)
    if arguments.dry_run:
        print(f"{samples:,} samples in {arguments.path}" + (f"; a report in {arguments.out}" if arguments.out else ""))
        return 0
    with EvaluationProgress(samples, verbs=("inspecting", "inspected")) as progress:
        inspection = inspect(
            arguments.path,
            check="headers" if arguments.headers else "pixels",
            workers=arguments.workers,
            pictures=arguments.pictures,
            progress=progress.update,
        )
    training = _train(arguments, samples=samples)
    complaints = _complaints(inspection, training)
    report = {"training": training.to_json(), "complaints": complaints, **inspection.to_json()}
    if arguments.out is not None:
        _write(arguments.out, inspection, training, complaints, report=report)
    print(json.dumps(report) if arguments.json else _summary(inspection, training, complaints))
    if arguments.out is not None and not arguments.json:
        print(f"the pictures and all of it: {arguments.out / 'index.html'}")
    return 1 if complaints else 0


def _train(arguments: argparse.Namespace, *, samples: int) -> TrainingCheck:
    with EvaluationProgress(samples, active=arguments.all, verbs=("training reads", "training read")) as progress:
        return check_training(
            arguments.path,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            read="all" if arguments.all else "batch",
            workers=arguments.workers if arguments.all else 0,
            progress=progress.update,
        )


def _complaints(inspection: Inspection, training: TrainingCheck) -> list[str]:
    """What keeps training from reading it, and where manifests are wrong."""
    found = []
    if training.problem:
        found.append(f"training stops: {training.problem}")
    elif stop := too_many_unusable(unusable=inspection.unusable, samples=inspection.contents.samples):
        found.append(f"training would stop: {stop}")
    if inspection.manifest is not None:
        found += [f"missing: {path} is listed in its folder's manifest" for path in inspection.manifest.missing]
        found += [f"not as listed: {line}" for line in inspection.manifest.different]
    return found


def _write(
    out: Path, inspection: Inspection, training: TrainingCheck, complaints: list[str], *, report: dict[str, object]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    sheet = contact_sheet(inspection.contents.thumbnails)
    if sheet is not None:
        write_atomic(out / "contact_sheet.png", png_bytes(sheet))
    inspection_page(inspection, training, complaints).save(out / "index.html")


def _summary(inspection: Inspection, training: TrainingCheck, complaints: list[str]) -> str:
    contents = inspection.contents
    what = f" in {len(contents.shards):,} shards" if inspection.kind == "shards" else ""
    lines = [
        f"{inspection.path}: {contents.samples:,} samples{what}, {contents.picture_bytes / 1e6:,.1f} MB of pictures"
    ]
    lines += [
        f"  {meaning}: {number:,} ({100 * share:.1f} %)" for meaning, (number, share) in shares(inspection).items()
    ]
    if contents.formats:
        lines.append("  formats: " + ", ".join(f"{name} {n:,}" for name, n in contents.formats.most_common()))
    for name in ("short_side", "aspect", "caption_words", "faces"):
        if bars := contents.histograms.bars(name):
            lines.append(f"  {name}: " + ", ".join(f"{label}: {number:,}" for label, number in bars.items() if number))
    if inspection.repeated_keys:
        key, first, again = inspection.repeated[0]
        lines.append(f"  repeated keys: {inspection.repeated_keys:,}, the first {key} in {first} and {again}")
    if inspection.manifest is not None and inspection.manifest.holds:
        lines.append(f"  manifest: {inspection.manifest.listed:,} shards are as listed")
    if inspection.unusable:
        reasons = ", ".join(f"{name} {number:,}" for name, number in contents.reasons.most_common())
        lines.append(f"  cannot be used: {inspection.unusable:,} ({reasons})")
        lines += [f"    {item.key} in {item.where}: {item.message}" for item in contents.unusable[:_NAMED]]
    if training.readable:
        shape = " x ".join(map(str, training.batch_shape))
        lines.append(f"  training reads it, tried with {training.samples_read:,} samples in batches of {shape}")
    return "\n".join([*lines, *complaints])

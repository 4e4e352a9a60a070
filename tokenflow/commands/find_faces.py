"""`tokenflow find-faces`: faces into the records of shards or of a folder's pictures, and an index for upsampling."""

import argparse
import json
import logging
import time
from typing import get_args

from tokenflow.data.face_detectors import DEFAULT_DETECTOR, FaceDetectorName, face_detector
from tokenflow.data.face_finding import FaceFinding, FaceReport
from tokenflow.data.face_index import FACE_INDEX_NAME
from tokenflow.data.face_records import FACE_REPORT_NAME
from tokenflow.evaluation.progress import EvaluationProgress

_PREVIEWED = 50
_FACTOR = 2.0
_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="PATH", help="shards, a pattern of them, or a folder of pictures")
    parser.add_argument(
        "--detector", choices=get_args(FaceDetectorName), help=f"default: yunet with --model, else {DEFAULT_DETECTOR}"
    )
    parser.add_argument("--model", metavar="ONNX", help="YuNet's file (face_detection_yunet_2023mar.onnx)")
    parser.add_argument("--workers", type=int, default=0, help="processes; the result is the same for any number")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, nothing else")
    parser.add_argument("--dry_run", action="store_true", help="look at a few samples, say what is there, then stop")


def run(arguments: argparse.Namespace) -> int:
    """Find faces; 0 when all samples were looked at, 1 when none could be."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if arguments.workers < 0:
        raise ValueError(f"--workers is {arguments.workers}; expected at least 0")
    detector = face_detector(arguments.detector, path=arguments.model)
    finding = FaceFinding(arguments.path, detector=detector)
    if arguments.dry_run:
        print(_preview(finding))
        return 0
    with EvaluationProgress(finding.total, verbs=("looking for faces", "looked at")) as progress:
        report = finding.run(workers=arguments.workers, progress=progress.update)
    print(json.dumps(report.to_json()) if arguments.json else _summary(report, arguments.path))
    return 1 if report.samples == sum(report.unknown.values()) else 0


def _preview(finding: FaceFinding) -> str:
    began = time.monotonic()
    found = finding.preview(_PREVIEWED)
    seconds = (time.monotonic() - began) / len(found)
    fresh = [sample for sample in found if not sample.stands]
    lines = [
        f"{finding.total:,} samples, to be looked at by {finding.detector.name}",
        f"of {len(found)} looked at, {sum(sample.count > 0 for sample in found)} have faces, "
        f"{len(found) - len(fresh)} were known already, {sum(bool(sample.reason) for sample in found)} cannot be used",
        f"{1000 * seconds:.0f} ms a sample in one process: about {finding.total * seconds / 60:,.0f} minutes for all",
    ]
    lines += [f"  {sample.reason}: {sample.detail}" for sample in found if sample.reason][:_NAMED]
    return "\n".join(lines)


def _summary(report: FaceReport, path: str) -> str:
    lines = [
        f"{report.with_faces:,} of {report.samples:,} samples have faces ({100 * report.share:.1f} %), "
        f"{report.faces:,} together, found by {report.detector}",
        f"  {'records written':<32} {report.written:>10,}",
    ]
    lines += [f"  {f'cannot be looked at: {reason}':<32} {count:>10,}" for reason, count in report.unknown.items()]
    lines += [f"  {f'in the index alone: {reason}':<32} {count:>10,}" for reason, count in report.kept.items()]
    if report.unknown or report.kept:
        lines.append(f"sample by sample: {FACE_REPORT_NAME} beside them")
    lines.append(f"index: {FACE_INDEX_NAME} beside them. " + _use(report))
    return "\n".join(lines)


def _use(report: FaceReport) -> str:
    """What training does with it."""
    if not report.with_faces:
        return "There is nothing to upsample"
    share = _FACTOR * report.share
    if share >= 1:
        return f"face_factor must stay below {1 / report.share:.2f} here"
    times = share / (1 - share) * (1 - report.share) / report.share
    return (
        f"With face_factor: {_FACTOR:g} in the recipe's source, training reads pictures with faces "
        f"{100 * share:.1f} % of the time, each {times:.2f} times as often as one without"
    )

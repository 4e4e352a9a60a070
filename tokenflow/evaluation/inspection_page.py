"""The contact sheet and the page of `tokenflow inspect-shards`."""

from collections.abc import Sequence

import numpy as np

from tokenflow.data.contents import Inspection, Thumbnail
from tokenflow.data.training_check import TrainingCheck
from tokenflow.evaluation.grid import Picture, tile
from tokenflow.evaluation.report import Number, PictureRow, Report

_COLUMNS = 8
_ROWS_OF_TABLES = 50
_CHARTS = {
    "short_side": ("Short side", "pixels"),
    "aspect": ("Aspect", "width over height"),
    "caption_words": ("Length of captions", "words"),
    "kilobytes": ("Size of a picture's file", "kilobytes"),
    "faces": ("Faces in a picture", "faces, of the samples with a count"),
}
_SHARES = {
    "caption": "with a caption",
    "captions": "with several captions",
    "recaptioned": "captioned anew",
    "record": "with a record (.json)",
    "codes": "with codes",
    "faces_known": "looked at for faces",
    "faces": "with a face",
    "broken_utf8": "captions not in UTF-8",
}
"""What the counts mean; also for the summary in the terminal."""


def shares(inspection: Inspection) -> dict[str, tuple[int, float]]:
    """{what it is about: (samples, their share)}; of samples with faces, the share of those looked at."""
    counts, samples = inspection.contents.counts, max(1, inspection.contents.samples)
    found = {}
    for name, meaning in _SHARES.items():
        whole = counts["faces_known"] if name == "faces" else samples
        if counts[name]:
            found[meaning] = (counts[name], counts[name] / max(1, whole))
    return found


def contact_sheet(thumbnails: Sequence[Thumbnail], *, columns: int = _COLUMNS) -> Picture | None:
    """Thumbnails in rows, uint8 [H, W, 3]; None without any."""
    if not thumbnails:
        return None
    pictures = np.stack([item.pixels for item in thumbnails])
    columns = min(columns, len(pictures))
    return tile([pictures[start : start + columns] for start in range(0, len(pictures), columns)], columns=columns)


def inspection_page(inspection: Inspection, training: TrainingCheck, complaints: Sequence[str]) -> Report:
    """The page: verdict, contact sheet, histograms, unusable samples, shards."""
    contents = inspection.contents
    what = f"{len(contents.shards):,} shards" if inspection.kind == "shards" else "a folder of pictures"
    report = Report(inspection.path, f"{contents.samples:,} samples in {what}")
    report.section("Verdict", _verdict(inspection, complaints))
    for complaint in complaints:
        report.text(complaint)
    report.numbers(_numbers(inspection, training))
    if contents.thumbnails:
        report.section("Pictures", "Evenly spread over the set; centre crops, with the start of their captions.")
        report.pictures(_rows(contents.thumbnails))
    report.section("Histograms")
    for name, (title, unit) in _CHARTS.items():
        if bars := contents.histograms.bars(name):
            report.bars(bars, title, "samples", xlabel=unit)
    if len(contents.formats) > 1:
        report.bars(dict(contents.formats.most_common()), "Formats", "samples")
    if inspection.unusable:
        report.section("Samples that cannot be used", "Training skips and counts them.")
        report.bars(dict(contents.reasons.most_common()), "Reasons", "samples")
        named = [[item.key, item.where, item.reason, item.message] for item in contents.unusable[:_ROWS_OF_TABLES]]
        report.table(["sample", "where", "reason", "what is wrong"], named, _first(len(named), inspection.unusable))
    if inspection.repeated:
        report.section("Repeated keys", "Training reads every one of them; tools that look samples up by key do not.")
        title = _first(len(inspection.repeated), inspection.repeated_keys)
        report.table(["key", "first in", "again in"], inspection.repeated, title)
    if contents.shards:
        report.section("Shards", _manifest_line(inspection))
        rows = [
            [row["name"], row["samples"], row["unusable"], f"{row['bytes'] / 1e6:,.1f}"]
            for row in contents.shards[:_ROWS_OF_TABLES]
        ]
        report.table(["shard", "samples", "unusable", "MB"], rows, _first(len(rows), len(contents.shards)))
    return report


def _verdict(inspection: Inspection, complaints: Sequence[str]) -> str:
    if complaints:
        return "This wants mending:"
    if inspection.unusable:
        return f"Training reads it, and skips {inspection.unusable:,} samples that cannot be used."
    return "Training reads it, and every sample can be used."


def _numbers(inspection: Inspection, training: TrainingCheck) -> list[Number]:
    contents = inspection.contents
    size = sum(row["bytes"] for row in contents.shards) or contents.picture_bytes
    numbers = [
        Number("Samples", contents.samples, note=f"{size / 1e6:,.1f} MB"),
        Number("Cannot be used", inspection.unusable, target=0, lower_is_better=True),
        Number("Repeated keys", inspection.repeated_keys, target=0, lower_is_better=True),
        Number(
            "Read by the training loader",
            training.samples_read,
            note=f"batches of {' x '.join(map(str, training.batch_shape))}" if training.batch_shape else "not readable",
        ),
    ]
    for meaning, (count, share) in shares(inspection).items():
        numbers.append(
            Number(meaning[:1].upper() + meaning[1:], round(100 * share, 1), unit="%", note=f"{count:,} samples")
        )
    return numbers


def _rows(thumbnails: Sequence[Thumbnail]) -> list[PictureRow]:
    rows = []
    for start in range(0, len(thumbnails), _COLUMNS):
        row = thumbnails[start : start + _COLUMNS]
        label = f"{start + 1} to {start + len(row)}"
        captions = [_start(item.caption) or item.key for item in row]
        rows.append(PictureRow(label, [item.pixels for item in row], captions))
    return rows


def _start(caption: str, *, letters: int = 60) -> str:
    return caption if len(caption) <= letters else caption[: letters - 3].rstrip() + "..."


def _first(shown: int, total: int) -> str:
    return f"The first {shown} of {total:,}" if shown < total else ""


def _manifest_line(inspection: Inspection) -> str:
    check = inspection.manifest
    if check is None:
        return "No manifest.json beside them."
    held = "as their manifest says" if check.holds else "not all as their manifest says"
    return f"{check.listed} listed in a manifest, {check.hashed} of them hashed: {held}."

"""GenEval's judgement from detected objects, after the description in its paper (arXiv 2310.11513) and evaluator.

The rules are GenEval's; the detector may be any. The official score uses mmdetection's Mask2Former, so what is taken
with another detector is named so and does not compare to the last digit.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenflow.evaluation.shares import Share, mean_of_kinds, share

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The colours GenEval asks for."""
CONFIDENCE = 0.3
"""Least confidence of an object."""
COUNTING_CONFIDENCE = 0.9
"""The same for prompts that count."""
MAX_OBJECTS = 16
"""Most objects of a class that are looked at."""
OVERLAP_MARGIN = 0.1
"""Share of the two objects' sizes by which centres must differ before a direction counts."""
MIN_DIRECTION = 0.5
"""Least component of the remaining offset along a direction, of the whole offset's length."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """An object found in a picture."""

    label: str
    confidence: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    mask: np.ndarray | None = None
    """bool [H, W], where the detector gives one."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a picture shows its prompt, and what is wrong if not."""

    correct: bool
    reasons: tuple[str, ...] = ()


ColourNamer = Callable[[Sequence[Detection]], list[str]]
"""Names the colour of each object (all of one class) of the picture at hand."""


def confident(detections: Iterable[Detection], *, tag: str) -> dict[str, list[Detection]]:
    """Objects above the tag's confidence by class, the surest first, at most MAX_OBJECTS each."""
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda item: -item.confidence):
        if detection.confidence > least and len(found.setdefault(detection.label, [])) < MAX_OBJECTS:
            found[detection.label].append(detection)
    return {label: items for label, items in found.items() if items}


def judge(metadata: Mapping[str, Any], detections: Iterable[Detection], *, name_colours: ColourNamer) -> Verdict:
    """GenEval's verdict: every `include` clause must hold and no `exclude` clause.

    A clause looks at the surest `count` objects of its class. Their colour, and their place relative to the objects of
    an earlier clause, must be right for all of them.
    """
    objects = confident(detections, tag=metadata["tag"])
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for clause in metadata["include"]:
        found = objects.get(clause["class"], [])[: clause["count"]]
        wrong = (
            _missing(clause, found) or _miscoloured(clause, found, name_colours) or _misplaced(clause, found, groups)
        )
        groups.append(None if wrong else found)
        reasons += [wrong] if wrong else []
    for clause in metadata.get("exclude", ()):
        number = len(objects.get(clause["class"], []))
        if number >= clause["count"]:
            reasons.append(f"expected fewer than {clause['count']} {clause['class']}, found {number}")
    return Verdict(correct=not reasons, reasons=tuple(reasons))


def directions(first: Detection, second: Detection) -> set[str]:
    """Where the first object lies relative to the second; empty when they overlap too much, two when diagonal."""
    sizes, offset = [], []
    for low, high in ((0, 2), (1, 3)):
        offset.append((first.box[low] + first.box[high] - second.box[low] - second.box[high]) / 2)
        sizes.append(abs(first.box[high] - first.box[low]) + abs(second.box[high] - second.box[low]))
    length = math.hypot(*offset)
    rest = [
        math.copysign(max(abs(distance) - OVERLAP_MARGIN * size, 0.0), distance)
        for distance, size in zip(offset, sizes, strict=True)
    ]
    if max(map(abs, rest)) < 1e-3:
        return set()
    x, y = (distance / length for distance in rest)
    named = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, component in named.items() if component > MIN_DIRECTION}


def summarise(verdicts: Sequence[tuple[str, str, bool]]) -> dict[str, Share]:
    """Shares from (tag, prompt's name, correct) of every picture: by tag, and `overall`, the mean over tags.

    Errors take a prompt's pictures as one observation.
    """
    tags: dict[str, dict[str, list[bool]]] = {}
    for tag, name, correct in verdicts:
        tags.setdefault(tag, {}).setdefault(name, []).append(correct)
    shares = {tag: share([float(np.mean(marks)) for marks in prompts.values()]) for tag, prompts in tags.items()}
    return {"overall": mean_of_kinds(list(shares.values())), **shares}


def _missing(clause: Mapping[str, Any], found: Sequence[Detection]) -> str | None:
    if len(found) >= clause["count"]:
        return None
    return f"expected {clause['count']} {clause['class']}, found {len(found)}"


def _miscoloured(clause: Mapping[str, Any], found: Sequence[Detection], name_colours: ColourNamer) -> str | None:
    if "color" not in clause:
        return None
    colours = name_colours(found)
    if colours.count(clause["color"]) >= clause["count"]:
        return None
    return f"expected {clause['count']} {clause['color']} {clause['class']}, found {', '.join(colours)}"


def _misplaced(
    clause: Mapping[str, Any], found: Sequence[Detection], groups: Sequence[list[Detection] | None]
) -> str | None:
    if "position" not in clause:
        return None
    wanted, number = clause["position"]
    targets = groups[number]
    if targets is None:
        return f"nothing for {clause['class']} to be {wanted}"
    for item in found:
        for target in targets:
            seen = directions(item, target)
            if wanted not in seen:
                where = " and ".join(sorted(seen)) or "neither beside nor above nor below"
                return f"expected {clause['class']} {wanted} {target.label}, found {where}"
    return None

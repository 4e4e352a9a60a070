"""Counts in fixed bins, the same for every data set, so that two of them can be compared."""

from bisect import bisect_right
from collections import Counter
from typing import Any

EDGES: dict[str, tuple[float, ...]] = {
    "short_side": (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048),
    "aspect": (0.33, 0.5, 0.66, 0.8, 0.95, 1.06, 1.26, 1.51, 2.01, 3.01),
    "caption_words": (1, 5, 9, 17, 33, 65, 129),
    "kilobytes": (4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
    "faces": (1, 2, 3, 4, 5),
}
"""Where bins meet; a value on an edge belongs to the bin above it. Sides in pixels, aspect = width / height."""
_WHOLE = ("short_side", "caption_words", "faces")


class Histograms:
    """A histogram of every quantity, with its smallest and largest value."""

    def __init__(self) -> None:
        self.bins: dict[str, Counter[int]] = {name: Counter() for name in EDGES}
        self.ranges: dict[str, tuple[float, float]] = {}

    def count(self, name: str, value: float) -> None:
        """One more sample with this value."""
        self.bins[name][bisect_right(EDGES[name], value)] += 1
        low, high = self.ranges.get(name, (value, value))
        self.ranges[name] = min(low, value), max(high, value)

    def add(self, other: "Histograms") -> None:
        """Count those of `other` too."""
        for name, counts in other.bins.items():
            self.bins[name] += counts
        for name, (low, high) in other.ranges.items():
            here = self.ranges.get(name, (low, high))
            self.ranges[name] = min(low, here[0]), max(high, here[1])

    def bars(self, name: str) -> dict[str, int]:
        """{label of a bin: count} from the first bin with something in it to the last; empty without any."""
        counts = self.bins[name]
        if not counts:
            return {}
        return {label(name, place): counts[place] for place in range(min(counts), max(counts) + 1)}

    def to_json(self) -> dict[str, Any]:
        """{name: {"bins": {label: count}, "min", "max"}} of those that hold something."""
        return {
            name: {"bins": self.bars(name), "min": round(low, 3), "max": round(high, 3)}
            for name, (low, high) in sorted(self.ranges.items())
        }


def label(name: str, place: int) -> str:
    """What a bin is called: "256-319", "1", "<64", "2048+"."""
    edges, whole = EDGES[name], name in _WHOLE
    if place == len(edges):
        return f"{edges[-1]:g}+"
    if place == 0:
        return ("0" if edges[0] == 1 else f"<{edges[0]:g}") if whole else f"<{edges[0]:g}"
    low, high = edges[place - 1], edges[place]
    if whole:
        return f"{low:g}" if high - low == 1 else f"{low:g}-{high - 1:g}"
    return f"{low:g}-{high:g}"

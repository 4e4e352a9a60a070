"""Small charts as inline SVG: lines, bars, ranks. No script and no dependency; colours come from the page's style.

Text colours and series colours are CSS variables (`--series-1` ...), so a chart follows the page into the dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 42
MAX_POINTS = 400
SERIES_COLOURS = 6


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: points in x order; a non-finite y interrupts it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """A map from values to pixels along one direction, and its tick values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of `value`."""
        if self.log:
            share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def number(value: float) -> str:
    """A number for people: few digits, no noise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        text = f"{int(value):,}"
    elif 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, 3 - max(0, math.floor(math.log10(abs(value)))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.2e}"
    return text.replace(",", " ").replace("-", "−")


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Round values that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return tuple(index * step for index in range(first, math.floor(high / step + 1e-9) + 1))


def linear_axis(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, tight: bool = False, count: int = 5
) -> Axis:
    """An axis that holds `values` with round ends (or exact ones, `tight`)."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-300:
        half = 0.5 * size if size >= 1e-300 else 0.5
        low, high = low - half, high + half
    ticks = nice_ticks(low, high, count)
    if not tight:
        step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        ticks = nice_ticks(low, high, max(2, round((high - low) / step) + 1))
    return Axis(low, high, start, end, ticks)


def log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis over positive values, ticks at powers of ten (and 2, 5 where few)."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low / 2, high * 2
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**e for e in exponents if low <= 10.0**e <= high]
    if len(ticks) < 3:
        ticks = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(ticks) < 2:
        ticks = [low, high]
    step = math.ceil(len(ticks) / 7)
    return Axis(low, high, start, end, tuple(ticks[::step]), log=True)


def smooth_values(values: Sequence[float], weight: float, *, log: bool = False) -> list[float]:
    """Exponential moving average with bias correction, run from both ends and averaged so that it does not lag.

    `weight` in [0, 1) is that of the past; `log` averages logarithms. Non-finite values stay and count for nothing.
    """
    inner = [math.log(value) if log and math.isfinite(value) else value for value in values]
    forward, backward = _decayed(inner, weight), _decayed(inner[::-1], weight)[::-1]
    both = [(left + right) / 2 for left, right in zip(forward, backward, strict=True)]
    return [math.exp(value) if log and math.isfinite(value) else value for value in both]


def _decayed(values: Sequence[float], weight: float) -> list[float]:
    total, mass, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        result.append(total / mass if math.isfinite(value) else value)
    return result


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `limit` points that keep the extremes of every stretch, so that spikes stay visible."""
    points = list(zip(x, y, strict=True))
    if len(points) <= limit:
        return points
    width = 2 * len(points) / limit
    kept: set[int] = {0, len(points) - 1}
    for bucket in range(limit // 2):
        inside = range(int(bucket * width), min(int((bucket + 1) * width), len(points)))
        finite = [i for i in inside if math.isfinite(points[i][1])]
        kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])} if finite else set()
        kept |= {i for i in inside if not math.isfinite(points[i][1])}
    return [points[i] for i in sorted(kept)]


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str = "", log: bool = False, smooth: float = 0.0
) -> str:
    """Lines over a common x as a `<figure>`: axes, legend with last values, values on hover."""

    def usable(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    lines = [s for s in series if any(usable(value) for value in s.y)]
    if not lines:
        return figure(title, '<p class="empty">no values yet</p>')
    values = [value for s in lines for value in s.y if usable(value)]
    x_axis = linear_axis([value for s in lines for value in s.x], LEFT, WIDTH - RIGHT, tight=True, count=7)
    y_axis = (log_axis if log else linear_axis)(values, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x_label=x_label)]
    legend = []
    for index, line in enumerate(lines):
        shown = [value if usable(value) else math.nan for value in line.y]
        colour = f"s{index % SERIES_COLOURS + 1}"
        if smooth:
            parts.append(_path(thin(line.x, shown), x_axis, y_axis, f"line raw {colour}"))
            shown = smooth_values(shown, smooth, log=log)
        points = thin(line.x, shown)
        parts.append(_path(points, x_axis, y_axis, f"line {colour}"))
        parts.append(_markers(points, x_axis, y_axis, line.name, colour, x_label))
        last = next(value for value in reversed(shown) if math.isfinite(value))
        legend.append((line.name, colour, number(last)))
    label = f"{title}: " + ", ".join(f"{name} ends at {last}" for name, _, last in legend)
    notes = [y_label] if y_label else []
    notes += ["log scale"] if log else []
    notes += ["smoothed; raw values behind"] if smooth else []
    return figure(title, _svg(parts, label), legend=legend, note=", ".join(notes))


def bar_chart(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    maximum: float | None = None,
    percent: bool = False,
) -> str:
    """Vertical bars with their values above, as a `<figure>`."""
    if len(labels) != len(values):
        raise ValueError(f"{len(labels)} labels for {len(values)} values, expected as many")
    if not values:
        return figure(title, '<p class="empty">no values yet</p>')
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    top = [maximum] if maximum is not None else []
    y_axis = linear_axis([*finite, *top], HEIGHT - BOTTOM, TOP + 14, zero=True)
    slot = (WIDTH - LEFT - RIGHT) / len(values)
    shown = [f"{100 * v:.3g}%" if percent else number(v) for v in values]
    parts = [_grid_lines(y_axis, percent=percent)]
    zero = y_axis.at(0.0)
    for index, (label, value, text) in enumerate(zip(labels, finite, shown, strict=True)):
        centre, width, edge = LEFT + slot * (index + 0.5), min(slot * 0.64, 60), y_axis.at(value)
        parts.append(
            f'<g><title>{escape(label)}: {escape(text)}</title><rect class="bar" x="{centre - width / 2:.1f}" '
            f'y="{min(edge, zero):.1f}" width="{width:.1f}" height="{max(abs(zero - edge), 0.5):.1f}" rx="2"/>'
        )
        if slot >= 38:
            parts.append(f'<text class="value" x="{centre:.1f}" y="{min(edge, zero) - 5:.1f}">{escape(text)}</text>')
        if slot >= 14 or index % math.ceil(14 / slot) == 0:
            parts.append(
                f'<text class="tick middle" x="{centre:.1f}" y="{HEIGHT - BOTTOM + 18}">{escape(label)}</text>'
            )
        parts.append("</g>")
    if x_label:
        parts.append(
            f'<text class="label middle" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}">{escape(x_label)}</text>'
        )
    described = f"{title}: " + ", ".join(f"{a} {b}" for a, b in zip(labels, shown, strict=True))
    return figure(title, _svg(parts, described), note=y_label)


def rank_chart(counts: Sequence[float], *, title: str, note: str = "") -> str:
    """How evenly codes are used: counts from the most to the least used code; the dashed line is the even share."""
    ordered = sorted((float(count) for count in counts), reverse=True)
    if not ordered or ordered[0] <= 0:
        return figure(title, '<p class="empty">no codes counted</p>')
    x_axis = linear_axis([0, len(ordered)], LEFT, WIDTH - RIGHT, tight=True, count=7)
    y_axis = linear_axis(ordered, HEIGHT - BOTTOM, TOP, zero=True)
    points = thin(range(len(ordered) + 1), [*ordered, ordered[-1]])
    outline = " ".join(f"L{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in points)
    floor, even = y_axis.at(0.0), sum(ordered) / len(ordered)
    parts = [
        _frame(x_axis, y_axis, x_label="codes, most used first"),
        f'<path class="area" d="M{LEFT} {floor:.1f} {outline} L{WIDTH - RIGHT} {floor:.1f} Z"/>',
        f'<g><title>even share: {number(even)}</title><line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
        f'y1="{y_axis.at(even):.1f}" y2="{y_axis.at(even):.1f}"/></g>',
    ]
    unused = sum(count == 0 for count in ordered)
    label = f"{title}: {len(ordered) - unused} of {len(ordered)} codes used, the most used {number(ordered[0])} times"
    return figure(
        title, _svg(parts, label), note=note or f"{unused} of {len(ordered)} codes unused; dashed: even share"
    )


def figure(title: str, body: str, *, legend: Sequence[tuple[str, str, str]] = (), note: str = "") -> str:
    """A chart's frame: caption, note, body (trusted markup), legend of (name, colour class, last value)."""
    keys = "".join(
        f'<li><i class="key {colour}"></i>{escape(name)} <b>{escape(last)}</b></li>' for name, colour, last in legend
    )
    caption = f"{escape(title)}<small>{escape(note)}</small>" if note else escape(title)
    legend_list = f'<ul class="legend">{keys}</ul>' if keys else ""
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{body}{legend_list}</figure>'


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _grid_lines(axis: Axis, *, percent: bool = False) -> str:
    lines = []
    for tick in axis.ticks:
        y = axis.at(tick)
        text = f"{100 * tick:.3g}%" if percent else number(tick)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{text}</text>'
        )
    return "".join(lines)


def _frame(x_axis: Axis, y_axis: Axis, *, x_label: str) -> str:
    base = HEIGHT - BOTTOM
    parts = [_grid_lines(y_axis), f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text class="tick {anchor}" x="{x:.1f}" y="{base + 18}">{number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label middle" x="{middle:.0f}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis, style: str) -> str:
    commands, drawing = [], False
    for x, y in points:
        if math.isfinite(y):
            commands.append(f"{'L' if drawing else 'M'}{x_axis.at(x):.1f} {y_axis.at(y):.1f}")
        drawing = math.isfinite(y)
    return f'<path class="{style}" d="{" ".join(commands)}"/>'


def _markers(
    points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis, name: str, colour: str, x_label: str
) -> str:
    """Discs that show on hover, with the value as their tooltip; at most about 60 a line.

    A value with none beside it, of which no line can be drawn, shows always.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    step = max(1, len(finite) // 60)
    chosen = finite[::-1][::step][::-1]
    lone = _lone(points)
    parts = []
    for x, y in dict.fromkeys([*chosen, *lone]):
        style = f"dot {colour} alone" if (x, y) in lone else f"dot {colour}"
        parts.append(
            f'<circle class="{style}" cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="5">'
            f"<title>{escape(name)} {number(y)} at {escape(x_label)} {number(x)}</title></circle>"
        )
    return "".join(parts)


def _lone(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Finite points without a finite one beside them."""
    finite = [False, *(math.isfinite(y) for _, y in points), False]
    return [p for i, p in enumerate(points, 1) if finite[i - 1 : i + 2] == [False, True, False]]

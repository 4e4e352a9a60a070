"""The page at the end of a run: one self-contained HTML file, no script, light and dark, fit for a phone.

    report = Report("TokenFlow nano", "600 steps on two cores")
    report.section("Tokenizer", "Images to codes and back.")
    report.numbers([Number("PSNR", 27.5, unit="dB", target=26)])
    report.pictures([PictureRow("original", originals), PictureRow("reconstruction", reconstructions)])
    report.curves(read_metrics("metrics.jsonl"), ["loss"], "Loss", "per image", log=True, smooth=0.9)
    report.save("report.html")

Every text is escaped; every picture is embedded. Later stages add sections of their own.
"""

import base64
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tokenflow.evaluation.charts import Series, bar_chart, line_chart, number, rank_chart
from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.measure import NOT_MEASURED, png_bytes, write_atomic
from tokenflow.evaluation.style import STYLE

logger = logging.getLogger(__name__)

ROW_FIELDS = ("step", "samples", "time", "alarms")
"""What a row of metrics holds besides metrics."""

TINY = 128
"""Pictures up to this width are shown pixel by pixel."""


@dataclass(frozen=True)
class Number:
    """One key figure on a card. With a `target` the card says whether it is reached."""

    name: str
    value: float | int | str | None
    unit: str = ""
    target: float | None = None
    lower_is_better: bool = False
    note: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a number at all."""
        return isinstance(self.value, (int, float)) and math.isfinite(self.value)

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without a target or a number."""
        if self.target is None or not self.measured:
            return None
        return self.value <= self.target if self.lower_is_better else self.value >= self.target


@dataclass(frozen=True)
class PictureRow:
    """A row of uint8 pictures [H, W, 3] under one label, each with an optional caption."""

    label: str
    pictures: Sequence[Picture]
    captions: Sequence[str] = ()


class Report:
    """A page that is filled from top to bottom; each call adds below the last."""

    def __init__(self, title: str, subtitle: str = "", *, footer: str = "") -> None:
        self.title, self.subtitle, self.footer = title, subtitle, footer
        self._sections: list[tuple[str, str, list[tuple[str, str]]]] = []

    def section(self, title: str, intro: str = "") -> None:
        """Begin a section; what follows belongs to it."""
        self._sections.append((title, intro, []))

    def text(self, paragraph: str) -> None:
        """A paragraph; blank lines separate several."""
        parts = [part.strip() for part in paragraph.split("\n\n") if part.strip()]
        for part in parts:
            self._add("prose", f'<p class="prose">{escape(part)}</p>')

    def code(self, text: str) -> None:
        """Preformatted text: a command, a recipe."""
        self._add("code", f"<pre>{escape(text)}</pre>")

    def numbers(self, numbers: Sequence[Number]) -> None:
        """Cards with key figures."""
        self._add("numbers", f'<div class="numbers">{"".join(_card(item) for item in numbers)}</div>')

    def pictures(self, rows: Sequence[PictureRow], title: str = "", note: str = "") -> None:
        """Rows of pictures under each other, column by column; scrolls sideways where the screen is narrow."""
        body = "".join(_picture_row(row) for row in rows)
        caption = f"<figcaption>{escape(title)}{f'<small>{escape(note)}</small>' if note else ''}</figcaption>"
        table = f'<table role="presentation">{body}</table>'
        self._add("pictures", f'<figure class="pictures">{caption if title or note else ""}{table}</figure>')

    def curves(
        self,
        metrics: Sequence[Mapping[str, Any]],
        keys: Sequence[str] | Mapping[str, str],
        title: str,
        ylabel: str = "",
        *,
        log: bool = False,
        smooth: float = 0.0,
        x: str = "step",
    ) -> None:
        """Lines of `keys` (or {key: name shown}) over `x` from rows as `read_metrics` gives them.

        `smooth` in [0, 1) is the weight of the past in a moving average drawn over the raw values.
        """
        if not 0 <= smooth < 1:
            raise ValueError(f"smooth is {smooth}, expected at least 0 and below 1, for instance 0.9")
        names = keys if isinstance(keys, Mapping) else {key: key for key in keys}
        series = []
        for key, name in names.items():
            points = [(row[x], row[key]) for row in metrics if _is_number(row.get(x)) and _is_number(row.get(key))]
            series.append(Series(name=name, x=[point[0] for point in points], y=[point[1] for point in points]))
        self._add("figures", line_chart(series, title=title, x_label=x, y_label=ylabel, log=log, smooth=smooth))

    def bars(
        self,
        values: Mapping[str, float],
        title: str,
        ylabel: str = "",
        *,
        xlabel: str = "",
        maximum: float | None = None,
        percent: bool = False,
    ) -> None:
        """Bars of {label: value}; `maximum` fixes the top of the axis, `percent` shows shares."""
        chart = bar_chart(
            list(values),
            list(values.values()),
            title=title,
            x_label=xlabel,
            y_label=ylabel,
            maximum=maximum,
            percent=percent,
        )
        self._add("figures", chart)

    def ranks(self, counts: Sequence[float], title: str, note: str = "") -> None:
        """Counts of codes from the most to the least used one."""
        self._add("figures", rank_chart(counts, title=title, note=note))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """A table; numbers are formatted and aligned to the right, booleans become marks."""
        numeric = [
            all(_is_number(row[i]) or row[i] in (None, "", NOT_MEASURED) for row in rows) for i in range(len(header))
        ]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a table row has {len(row)} cells, expected {len(header)} as in the header {header}")
        styles = [' class="numeric"' if flag and rows else "" for flag in numeric]
        head = "".join(f"<th{style}>{escape(str(cell))}</th>" for cell, style in zip(header, styles, strict=True))
        body = "".join(
            "<tr>" + "".join(_cell(cell, style) for cell, style in zip(row, styles, strict=True)) + "</tr>"
            for row in rows
        )
        caption = f"<caption>{escape(title)}</caption>" if title else ""
        self._add(
            "table",
            f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        )

    def html(self) -> str:
        """The page."""
        links = "".join(
            f'<li><a href="#part-{i}">{escape(title)}</a></li>' for i, (title, _, _) in enumerate(self._sections, 1)
        )
        menu = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(self._sections) > 1 else ""
        parts = "".join(_section(index, *section) for index, section in enumerate(self._sections, 1))
        subtitle = f"<p>{escape(self.subtitle)}</p>" if self.subtitle else ""
        footer = f"<footer>{escape(self.footer)}</footer>" if self.footer else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{escape(self.title)}</title><style>{STYLE}</style></head>'
            f'<body><div class="page"><header><h1>{escape(self.title)}</h1>{subtitle}</header>'
            f"{menu}<main>{parts}</main>{footer}</div></body></html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; whole or not at all."""
        return write_atomic(path, self.html())

    def _add(self, kind: str, markup: str) -> None:
        if not self._sections:
            raise ValueError("the report has no section yet, expected one; call section(title) first")
        self._sections[-1][2].append((kind, markup))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`, one a step, in order of steps.

    Rows that say `"kind": "evaluation"` have that before their metrics: `evaluation/psnr`. A killed run leaves a cut
    last line, and a resumed one may repeat steps: what cannot be read is counted in the log and left out, and later
    values of a step replace earlier ones.
    """
    steps: dict[Any, dict[str, Any]] = {}
    damaged = 0
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and _is_number(row.get("step")):
            steps.setdefault(row["step"], {}).update(_named_by_kind(row))
        else:
            damaged += 1
    if damaged:
        logger.warning("%s: left out %d lines that are no rows with a step", path, damaged)
    return [steps[step] for step in sorted(steps)]


def _named_by_kind(row: dict[str, Any]) -> dict[str, Any]:
    kind = row.pop("kind", "train")
    prefix = "" if kind == "train" else f"{kind}/"
    return {name if name in ROW_FIELDS else f"{prefix}{name}": value for name, value in row.items()}


def _section(index: int, title: str, intro: str, blocks: Sequence[tuple[str, str]]) -> str:
    body, charts = [], []
    for kind, markup in [*blocks, ("", "")]:
        if kind == "figures":
            charts.append(markup)
            continue
        if charts:
            body.append(f'<div class="figures">{"".join(charts)}</div>')
            charts = []
        body.append(markup)
    opening = f'<p class="intro">{escape(intro)}</p>' if intro else ""
    return f'<section id="part-{index}"><h2>{escape(title)}</h2>{opening}{"".join(body)}</section>'


def _card(item: Number) -> str:
    if item.measured:
        unit = f"<small>{escape(item.unit)}</small>" if item.unit else ""
        shown = f'<div class="figure">{escape(number(item.value))}{unit}</div>'
    else:
        shown = (
            f'<div class="figure absent">{escape(str(item.value if item.value is not None else NOT_MEASURED))}</div>'
        )
    mark = ""
    if item.target is not None:
        sign = "≤" if item.lower_is_better else "≥"
        aim = f"{sign} {number(item.target)}"
        kind, sign = {True: (" good", "✓ "), False: (" bad", "✗ "), None: ("", "")}[item.reached]
        said = {True: "reached", False: "missed", None: "open"}[item.reached]
        mark = f'<span class="mark{kind}" title="target {escape(aim)}: {said}">{sign}goal {escape(aim)}</span>'
    note = f'<div class="note">{mark}{escape(item.note)}</div>' if item.note or mark else ""
    return f'<div class="number"><div class="name">{escape(item.name)}</div>{shown}{note}</div>'


def _picture_row(row: PictureRow) -> str:
    cells = []
    for index, picture in enumerate(row.pictures):
        caption = row.captions[index] if index < len(row.captions) else ""
        data = base64.b64encode(png_bytes(picture)).decode("ascii")
        height, width = picture.shape[:2]
        tiny = ' class="tiny"' if width <= TINY else ""
        below = f'<div class="caption">{escape(caption)}</div>' if caption else ""
        described = escape(caption or f"{row.label} {index + 1}")
        cells.append(
            f'<td><img{tiny} src="data:image/png;base64,{data}" alt="{described}" width="{width}" height="{height}">'
            f"{below}</td>"
        )
    return f'<tr><th scope="row">{escape(row.label)}</th>{"".join(cells)}</tr>'


def _cell(value: Any, style: str) -> str:
    if value is None:
        shown = "–"
    elif isinstance(value, bool):
        shown = f'<span class="mark {"good" if value else "bad"}">{"✓ yes" if value else "✗ no"}</span>'
    else:
        shown = escape(number(value) if _is_number(value) else str(value))
    if not style and len(shown) > 60:
        style = ' class="long"'
    return f"<td{style}>{shown}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

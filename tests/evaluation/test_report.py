import base64
import io
import json
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tokenflow.evaluation.report import Number, PictureRow, Report, read_metrics

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + "\n"


def picture(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, dtype=np.uint8)


def full_report() -> Report:
    report = Report("Nano <1>", "trained & measured", footer="v0 <b>")
    report.section("Tokenizer", "codes < pixels")
    report.numbers(
        [
            Number("PSNR", 27.5, unit="dB", target=26),
            Number("usage", 0.9, target=0.95),
            Number("distance", 0.2, target=0.3, lower_is_better=True),
            Number("LPIPS", "not measured", note="weights <absent>", target=0.1, lower_is_better=True),
        ]
    )
    report.pictures([PictureRow("original", [picture(3), picture(7)], ["a & b"]), PictureRow("big", [picture(9, 200)])])
    rows = [{"step": step, "loss": 1 / (step + 1), "psnr": 20 + step} for step in range(30)]
    report.curves(rows, {"loss": "total <loss>"}, "Loss", "nats", log=True, smooth=0.9)
    report.curves(rows, ["psnr", "absent"], "PSNR")
    report.bars({"1": 0.5, "2": 1.0}, "Usage", percent=True, maximum=1)
    report.ranks([5, 3, 0, 1], "Codes")
    report.section("How")
    report.table(["name", "value", "ok"], [["<i>", 1.5, True], ["b", None, False]], "Rows")
    report.text("one\n\ntwo <script>alert(1)</script>")
    report.code("make demo && echo '<done>'")
    return report


def test_the_page_nests_and_says_everything():
    page = Page(full_report().html())
    for words in (
        "Nano <1>",
        "trained & measured",
        "codes < pixels",
        "27.5",
        "weights <absent>",
        "a & b",
        "total <loss>",
    ):
        assert words in page.text
    assert "make demo && echo '<done>'" in page.text
    assert [tag for tag, _ in page.tags].count("section") == 2
    assert len([1 for tag, _ in page.tags if tag == "svg"]) == 4


def test_the_page_is_one_file_without_script_or_links_outside():
    page = Page(full_report().html())
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in full_report().html() and "url(" not in full_report().html()


def test_pictures_are_embedded_whole_and_crisp_when_tiny():
    images = [attributes for tag, attributes in Page(full_report().html()).tags if tag == "img"]
    decoded = [np.array(Image.open(io.BytesIO(base64.b64decode(i["src"].split(",")[1])))) for i in images]
    assert [int(image[0, 0, 0]) for image in decoded] == [3, 7, 9]
    assert [image.get("class") for image in images] == ["tiny", "tiny", None]
    assert [image["alt"] for image in images] == ["a & b", "original 2", "big 1"]


def test_targets_are_marked():
    marks = [
        attributes
        for tag, attributes in Page(full_report().html()).tags
        if "mark" in attributes.get("class", "").split()
    ]
    assert [mark["class"] for mark in marks[:4]] == ["mark good", "mark bad", "mark good", "mark"]
    assert marks[0]["title"] == "target ≥ 26: reached"


def test_light_and_dark_and_phone():
    html = full_report().html()
    assert "prefers-color-scheme: dark" in html and "max-width: 600px" in html and "width=device-width" in html


def test_save_is_atomic_and_makes_folders(tmp_path, monkeypatch):
    path = full_report().save(tmp_path / "runs" / "report.html")
    before = path.read_text(encoding="utf-8")
    assert before == full_report().html()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        Report("other").save(path)
    assert path.read_text(encoding="utf-8") == before
    assert list(path.parent.iterdir()) == [path]


def test_content_before_a_section_and_ragged_tables_are_errors():
    report = Report("t")
    with pytest.raises(ValueError, match="section"):
        report.text("lost")
    report.section("s")
    with pytest.raises(ValueError, match="2 cells, expected 1"):
        report.table(["a"], [[1, 2]])
    with pytest.raises(ValueError, match="smooth"):
        report.curves([], ["a"], "t", smooth=1.0)


def test_metrics_survive_a_cut_line_and_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "psnr": 20.0}, {"step": 3, "loss": 9.0}]
    lines = [json.dumps(row) for row in rows]
    again = [json.dumps({"step": 3, "loss": 1.0}), '{"step": 4, "lo']
    path.write_text("\n".join([*lines, '{"step": 3, "x', *again]))
    assert read_metrics(path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "psnr": 20.0},
        {"step": 3, "loss": 1.0},
    ]


def test_metrics_of_an_evaluation_keep_their_own_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 5, "kind": "train", "samples": 40, "psnr": 20.0},
        {"step": 5, "kind": "evaluation", "samples": 40, "psnr": 19.0, "alarms": ["dead codes"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(path) == [
        {"step": 5, "samples": 40, "psnr": 20.0, "evaluation/psnr": 19.0, "alarms": ["dead codes"]}
    ]


def test_metrics_with_nan_are_read_and_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5}\n')
    report = Report("t")
    report.section("s")
    report.curves(read_metrics(path), ["loss"], "Loss")
    Page(report.html())


def test_a_missing_metrics_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "absent.jsonl")

"""The result of text to image on the page, as Markdown and as a grid."""

import numpy as np

from tests.evaluation.painters import DrawingPainter
from tests.evaluation.test_compositional import evaluate, plan
from tests.evaluation.test_report import Page
from tokenflow.evaluation.generation_section import generation_section
from tokenflow.evaluation.generation_tables import (
    RIGHT,
    WRONG,
    compositional_markdown,
    compositional_text,
    framed,
    gallery_picture,
)
from tokenflow.evaluation.report import Report


def some_result():
    return evaluate(DrawingPainter(lambda prompt, index, options: index % 2 == 0), plan())


def test_the_section_shows_prompts_marks_tables_and_curves():
    metrics = [
        {"step": step, "loss": 5.0, "accuracy": 0.1, "loss/scale_1": 1.0, "loss/scale_2": 2.0,
         "evaluation/loss": 5.1, "evaluation/accuracy": 0.1}
        for step in range(3)
    ]  # fmt: skip
    result = some_result()
    report = Report("t")
    generation_section(report, result, metrics, targets={"seen": 0.1, "heldout": 0.9})
    page = Page(report.html())
    for row in result.gallery:
        assert row.prompt in page.text
    for words in ("held-out pair", "✓ read back", "✗ not read back", "all kinds", "three-step", "Loss at each scale"):
        assert words in page.text, words
    marks = [a["class"] for _, a in page.tags if a.get("class", "").startswith("mark")]
    assert marks == ["mark good", "mark bad"]
    assert sum(tag == "img" for tag, _ in page.tags) == sum(len(row.pictures) for row in result.gallery)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_without_a_run_there_are_no_charts():
    report = Report("t")
    generation_section(report, some_result())
    assert "<svg" not in report.html()


def test_markdown_and_terminal_have_every_kind_and_setting_and_the_papers_table():
    result = some_result()
    text = compositional_markdown(result, title="nano: somewhere", protocol={"verifier": "exact"})
    assert text.startswith("# nano: somewhere\n")
    assert "| single-step | 2 |" in text and "| [1200, 100, 1] | [0.8, 0.8, 0] | 0.553 | 0.825 |" in text
    assert "- verifier: exact" in text
    assert "| single_object | " in text and " | - |" in text
    shown = compositional_text(result)
    assert "color_attribution" in shown and "three-step" in shown


def test_the_grid_frames_right_pictures_green_and_wrong_ones_red():
    result = some_result()
    picture = gallery_picture(result.gallery)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {RIGHT, WRONG} <= colours
    inner = np.full((5, 6, 3), 7, np.uint8)
    assert np.array_equal(framed(inner, right=True)[3:-3, 3:-3], inner)
    assert tuple(framed(inner, right=False)[0, 0]) == WRONG

"""The demo, quickly: all stages, the page and the numbers; a second run finds everything done."""

import json
from html.parser import HTMLParser

import pytest

from tests.train.launching import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
STAGES = 12
"""The trainings of `pipelines.demo`, and the codes."""


class Page(HTMLParser):
    """Counts pictures and collects what would be fetched."""

    def __init__(self):
        super().__init__()
        self.pictures, self.fetched = 0, []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.pictures += tag == "img" and values.get("src", "").startswith("data:image/png;base64,")
        source = values.get("src") or (values.get("href") if tag == "link" else None)
        if source and not source.startswith("data:"):
            self.fetched.append(source)


def test_the_quick_demo_makes_one_self_contained_page_and_the_numbers(tmp_path):
    run("--quick", 60, "--output", tmp_path / "demo", module="pipelines.demo", timeout=900)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["quick"] is True
    assert 0 < metrics["tokenizer.usage"] <= 1
    assert metrics["tokenizer.psnr"] > 10
    assert metrics["tokenizer.verifier_original"] == 1.0
    assert metrics["decoder.psnr_base"] == metrics["tokenizer.psnr"]
    assert metrics["decoder.psnr"] > metrics["decoder.psnr_base"]
    for name in ("seen", "heldout", "single_step", "multi_step"):
        assert 0 <= metrics[f"generation.{name}"] <= 1
    for name in ("overall", "heldout"):
        assert 0 <= metrics[f"understanding.{name}"] <= 1
    page = Page()
    page.feed((tmp_path / "demo" / "report.html").read_text())
    assert page.pictures >= 24
    assert page.fetched == []
    assert (tmp_path / "demo" / "quick" / "mlflow.db").is_file()
    finished = json.loads((tmp_path / "demo" / "quick" / "finished.json").read_text())
    assert len(finished) == 1 + STAGES and finished["world"]["kind"] == "shapes"

    # The same command again trains nothing (what it does where an output is gone: test_finished_stages.py).
    output = run("--quick", 60, "--output", tmp_path / "demo", module="pipelines.demo", timeout=900)
    assert output.count("finished before: ") == STAGES
    again = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert again["tokenizer.psnr"] == pytest.approx(metrics["tokenizer.psnr"])

"""The ablation, quickly: all variants, the table and the numbers; a second run finds everything done."""

import json

import pytest

from tests.train.launching import run
from tokenflow.evaluation.ablation_table import VARIANTS

pytestmark = pytest.mark.slow


def test_the_quick_ablation_asks_every_variant_and_is_not_repeated(tmp_path):
    options = ("--quick", "--output", tmp_path, "--demo", tmp_path / "no-demo")
    said = run(*options, module="pipelines.ablation", timeout=600)
    assert said.count("$ python") == 5 + 2 * len(VARIANTS)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["quick"] is True
    for name in VARIANTS:
        assert 0 <= metrics[f"understanding.{name}"] <= 1
        assert 0 <= metrics[f"understanding.{name}.heldout"] <= 1
    assert "VQGAN (Table 1)" in (tmp_path / "result.md").read_text()
    assert "TokenFlow-B, residuals (Table 8)" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "no-demo").exists()
    assert "$ python" not in run(*options, module="pipelines.ablation", timeout=600)

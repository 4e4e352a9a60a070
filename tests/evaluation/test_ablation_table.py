"""Means and spreads over seeds, the lead that the ablation must show, and the paper's rows beside."""

import re

import numpy as np
import pytest

from tokenflow.evaluation.ablation_table import (
    VARIANTS,
    ablation_markdown,
    ablation_metrics,
    ablation_section,
    ablation_text,
    missed_lead,
    paper_rows,
    summarise,
)
from tokenflow.evaluation.report import Report


def seeds(*values, heldout=0.5):
    return [{"overall": value, "heldout": heldout, "seen/colour": 1.0} for value in values]


def test_metrics_are_means_and_sample_deviations_over_seeds():
    values = [0.91, 0.94, 0.97]
    metrics = ablation_metrics(summarise({"tokenflow": seeds(*values), "semantic": seeds(0.9, heldout=0.7)}))
    assert metrics["understanding.tokenflow"] == pytest.approx(np.mean(values))
    assert metrics["understanding.tokenflow_spread"] == pytest.approx(np.std(values, ddof=1))
    assert metrics["understanding.tokenflow.heldout"] == 0.5
    assert metrics["understanding.tokenflow_spread.heldout"] == 0
    assert metrics["understanding.semantic.heldout"] == 0.7
    assert "understanding.semantic_spread" not in metrics


@pytest.mark.parametrize(
    ("tokenflow", "pixel_only", "missed"),
    [
        ((0.90, 0.92, 0.94), (0.70, 0.72, 0.74), None),
        ((0.90, 0.92, 0.94), (0.87, 0.89, 0.91), r"0\.920 ± 0\.020 is not ahead of .*0\.890 ± 0\.020.*\+0\.030"),
        ((0.70, 0.72, 0.74), (0.90, 0.92, 0.94), "not ahead"),
        ((0.80, 0.80), (0.80, 0.80), "not ahead"),
        ((0.90,), (0.10, 0.11), "a spread needs two"),
    ],
)
def test_ahead_means_by_more_than_both_spreads_together(tokenflow, pixel_only, missed):
    found = missed_lead(summarise({"tokenflow": seeds(*tokenflow), "pixel_only": seeds(*pixel_only)}))
    assert found is None if missed is None else re.search(missed, found)


def test_every_variant_has_a_row_of_the_paper():
    rows = paper_rows()
    assert set(rows) == set(VARIANTS)
    assert rows["tokenflow"][1]["mme_perception"] == 1356.5
    assert rows["pixel_only"][1] == {"mme_perception": 756.1, "seed": 38.2, "textvqa": 46.8}
    assert rows["teacher"][1]["mme_perception"] == 1460.9


def test_all_forms_show_ours_and_the_papers_side_by_side():
    summaries = summarise({"pixel_only": seeds(0.5, 0.7), "tokenflow": seeds(0.9, 0.9), "residuals": seeds(0.8)})
    assert list(summaries) == ["tokenflow", "pixel_only", "residuals"]
    report = Report("page")
    ablation_section(report, summaries, protocol={"seeds": 2})
    for text in (ablation_text(summaries), ablation_markdown(summaries, protocol={"seeds": 2}), report.html()):
        for expected in ("0.600 ± 0.141", "VQGAN (Table 1)", "756.1", "1216.5", "only the order of rows"):
            assert expected in text


@pytest.mark.parametrize(
    ("results", "message"), [({"pixels": seeds(0.5)}, "unknown variant 'pixels'"), ({"teacher": []}, "one seed")]
)
def test_what_cannot_be_summarised_is_refused(results, message):
    with pytest.raises(ValueError, match=message):
        summarise(results)

import json

import pytest

from tokenflow.evaluation.lmms_results import LMMS_METRICS, lmms_scores, read_lmms_scores
from tokenflow.evaluation.paper_understanding import COLUMNS, TABLE_3, average

XL = next(row for row in TABLE_3 if row.language == "Qwen2.5-14B")


def results_of(scores):
    """What lmms-eval would have written for these figures."""
    found = {}
    for column, place in LMMS_METRICS.items():
        if column != "mme":
            measures = found.setdefault(place.task, {"alias": place.task})
            measures |= {
                f"{place.metrics[0]},none": scores[column] / place.scale,
                f"{place.metrics[0]}_stderr,none": "N/A",
            }
    found["mme"]["mme_cognition_score,none"] = scores["mme"] - scores["mme_perception"]
    found["ai2d"] = {"exact_match,flexible-extract": found["ai2d"]["exact_match,none"]}
    return found


def test_every_column_of_table_3_has_its_place_in_the_results():
    assert set(LMMS_METRICS) == set(COLUMNS)
    scores = lmms_scores(results_of(XL.scores))
    assert scores == pytest.approx(XL.scores) and average(scores) == pytest.approx(67.4, abs=0.06)


def test_what_was_not_measured_is_left_out():
    assert lmms_scores({"pope": {"pope_f1_score,none": 0.878}, "mme": {"mme_perception_score,none": 1500.0}}) == {
        "pope": pytest.approx(87.8),
        "mme_perception": 1500.0,
    }


def test_files_are_put_together_and_later_ones_win(tmp_path):
    for name, value in (("a", 0.5), ("b", 0.6)):
        (tmp_path / name).write_text(json.dumps({"results": {"gqa": {"exact_match,none": value}}}))
    (tmp_path / "c").write_text(json.dumps({"results": {"pope": {"pope_f1_score,none": 0.8}}}))
    assert read_lmms_scores([tmp_path / name for name in "abc"]) == {
        "gqa": pytest.approx(60),
        "pope": pytest.approx(80),
    }
    (tmp_path / "d").write_text("[]")
    with pytest.raises(ValueError, match="has no results"):
        read_lmms_scores([tmp_path / "d"])

"""The paper's rows on understanding, and ours beside them."""

import pytest

from tokenflow.evaluation.paper_understanding import (
    COLUMNS,
    RETAINED,
    TABLE_1,
    TABLE_3,
    TABLE_8,
    TABLE_9,
    as_markdown,
    as_text,
    average,
    beside_ours,
)


def test_averages_are_those_the_paper_prints():
    complete = [row for row in TABLE_3 + TABLE_9 if average(row.scores) is not None]
    assert len(complete) == 6 + 6
    for row in TABLE_3 + TABLE_9:
        assert (row.average is None) == (row not in complete)
        if row.average is not None:
            assert average(row.scores) == pytest.approx(row.average, abs=0.06), row


def test_codes_keep_the_share_of_their_teacher_that_the_paper_prints():
    for teacher, ours in zip(TABLE_9[:3], TABLE_9[3:], strict=True):
        assert ours.average / teacher.average == pytest.approx(RETAINED[ours.model], abs=0.001)
        assert teacher.resolution == ours.resolution and (teacher.visual, ours.visual) == ("continuous", "discrete")


def test_b_and_l_are_the_same_models_in_both_tables():
    for name in ("TokenFlow-B", "TokenFlow-L"):
        first, second = (next(row for row in table if row.model == name) for table in (TABLE_3, TABLE_9))
        assert first == second


def test_the_papers_claims_hold_in_its_own_rows():
    best = max((row for row in TABLE_3 if row.visual == "discrete" and row.average), key=lambda row: row.average)
    assert (best.model, best.language, best.average) == ("TokenFlow-XL", "Qwen2.5-14B", 67.4)
    by_mme = max(TABLE_8, key=lambda row: row.scores["mme"])
    assert by_mme.features == "last_scale"
    discrete = [row for row in TABLE_1 if row.visual == "discrete"]
    assert max(discrete, key=lambda row: row.scores["seed"]).kind == "semantic"


@pytest.mark.parametrize("source", ["Table 3", "Table 9"])
def test_ours_stands_last_with_what_is_missing_said(source):
    table = beside_ours(name="mine", scores={"pope": 0.5}, caution="Do not compare.", source=source)
    text, markdown = as_text(table), as_markdown(table)
    lines = text.splitlines()
    assert lines[0].split() == ["model", *COLUMNS.values(), "Avg."]
    assert lines[-2].startswith("mine") and "0.5" in lines[-2] and lines[-2].count("not measured") == 12
    assert lines[-1] == f"arXiv 2412.03069v2, {source}. Do not compare." and "| mine |" in markdown
    assert len(lines) == {"Table 3": 20, "Table 9": 6}[source] + 3


def test_our_average_is_taken_when_everything_was_measured():
    scores = next(row for row in TABLE_3 if row.model == "TokenFlow-B").scores
    assert beside_ours(name="mine", scores=scores, caution="")["ours"]["average"] == pytest.approx(55.2, abs=0.06)


def test_a_table_without_all_benchmarks_is_refused():
    with pytest.raises(ValueError, match="expected Table 3 or Table 9"):
        beside_ours(name="mine", scores={}, caution="", source="Table 8")

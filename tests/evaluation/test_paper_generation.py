"""The paper's text-to-image rows, and ours beside them."""

import pytest

from tokenflow.evaluation.paper_generation import (
    COLUMNS,
    PAPER_SCORES,
    TABLE_6,
    as_markdown,
    as_text,
    beside_ours,
)


def test_every_full_row_has_every_column_and_overall_is_the_mean_of_genevals_kinds():
    for row in PAPER_SCORES:
        assert len(row.geneval) in (0, 1, 7) and len(row.dpg) in (0, 6)
        if len(row.geneval) == 7:
            assert row.geneval[0] == pytest.approx(sum(row.geneval[1:]) / 6, abs=0.011), row.model


def test_the_papers_own_figures():
    ours = next(row for row in PAPER_SCORES if row.model == "TokenFlow")
    assert ours.geneval[0] == 0.55 and ours.dpg[0] == 73.38
    assert (TABLE_6[0].geneval, TABLE_6[-1].geneval) == (0.502, 0.553)


@pytest.mark.parametrize("benchmark", COLUMNS)
def test_ours_stands_last_with_what_is_missing_said(benchmark):
    scores = {"overall": 0.5} if benchmark == "geneval" else {}
    table = beside_ours(benchmark, name="mine", scores=scores, caution="Do not compare.")
    text, markdown = as_text(table), as_markdown(table)
    rows = [line for line in text.splitlines() if line.startswith(("mine", "Show-o", "model"))]
    assert rows[0].split()[1:] == list(COLUMNS[benchmark]) and rows[-1].startswith("mine")
    assert "not measured" in rows[-1] and ("0.50" in rows[-1]) == (benchmark == "geneval")
    assert text.endswith("arXiv 2412.03069v2, Table 10. Do not compare.")
    assert markdown.count("\n| ") >= 10 and "| mine |" in markdown
    assert ("Transfusion" in text) == (benchmark == "geneval")

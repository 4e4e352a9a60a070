"""docs/scale.md tells of the recipes as they are."""

import pytest

from benchmarks.scale import BEGIN, END, STAGES, replaced, shipped_costs, tables
from tests.train.launching import ROOT
from tokenflow.config import RECIPES

PAGE = ROOT / "docs" / "scale.md"


def test_the_page_names_every_training_recipe():
    page = PAGE.read_text()
    for stage in STAGES:
        for path in (RECIPES / stage).glob("*.yaml"):
            assert page.count(f"| {stage}/{path.stem} |") == 2, path


@pytest.mark.slow
def test_the_pages_tables_are_those_of_the_recipes():
    page = PAGE.read_text()
    assert replaced(page, tables(shipped_costs())) == page, "run python -m benchmarks.scale --write docs/scale.md"


def test_only_what_stands_between_the_marks_is_replaced():
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", "new") == "a\nnew\nb"
    with pytest.raises(ValueError, match="lacks"):
        replaced(f"a\n{END}\n", "new")

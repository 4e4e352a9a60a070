import json

import pytest

from tokenflow.evaluation.paper_table import PAPER_ROWS, as_markdown, as_text, beside_ours, comparability
from tokenflow.tokenizer.presets import preset

METRICS = {"rfid": "not measured", "psnr": 21.345, "ssim_authors": 0.6789, "ssim": 0.5678, "usage": 0.98765}


def table(images=50_000, name="tokenflow-xl"):
    config = preset(name)
    return beside_ours(name=name, metrics=METRICS, images=images, image_size=config.image_size, scales=config.scales)


def test_table_2_as_printed_in_the_paper():
    ours = {row.resolution: row for row in PAPER_ROWS if row.model == "TokenFlow"}
    assert (ours[256].rfid, ours[256].psnr, ours[256].ssim) == (1.37, 21.41, 0.687)
    assert (ours[384].rfid, ours[384].psnr, ours[384].ssim) == (0.63, 22.77, 0.731)
    assert sum(row.table == 2 for row in PAPER_ROWS) == 11


@pytest.mark.parametrize(("name", "resolution"), [("tokenflow-l", 256), ("tokenflow-xl", 384)])
def test_levels_and_ratio_of_the_presets_are_those_of_the_papers_rows(name, resolution):
    (row,) = (row for row in PAPER_ROWS if (row.model, row.resolution) == ("TokenFlow", resolution))
    ours = table(name=name)["ours"]
    assert (ours["levels"], ours["ratio"], ours["resolution"]) == (row.levels, row.ratio, resolution)


def test_columns_are_aligned_and_hold_only_what_was_measured():
    header, *rows, rule, ssim = as_text(table()).splitlines()
    assert len(rows) == 12 and "VILA-U" in rows[5]
    ends = {line.rindex(cell) + len(cell) for line, cell in ((header, "PSNR"), (rows[0], "20.00"), (rows[-1], "21.34"))}
    assert len(ends) == 1
    assert rows[-1].split() == [
        *("tokenflow-xl", "ours", "384", "14.2", "15", "not", "measured", "21.34", "0.679", "0.568", "0.9877")
    ]
    assert "data_range 2" in ssim and "50000 pictures of ImageNet-1k val" in rule
    markdown = as_markdown(table())
    assert markdown.count("\n| ") == 13 and "| not measured | 21.34 |" in markdown


def test_other_pictures_or_sizes_do_not_compare():
    assert "NOT comparable" in table(images=49_999)["comparable"]
    assert "NOT comparable" in comparability(images=50_000, image_size=32)
    assert "NOT" not in table()["comparable"]


def test_table_5_is_for_224_pixels_only():
    small = table(name="tokenflow-b")
    assert [row["rfid"] for row in small["rows"] if row["table"] == 5] == [8.07, 3.96, 2.18, 2.16]
    assert all(row["table"] == 2 for row in table()["rows"])
    assert json.loads(json.dumps(small)) == small

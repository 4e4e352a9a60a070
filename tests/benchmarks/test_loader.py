"""The loader's benchmark decodes what the loader reads, and a row holds what the docstring promises."""

import argparse
import random
from functools import partial

import numpy as np
import pytest

from benchmarks.loader import decode_and_crop, measure, seconds_alone, write_pictures
from tokenflow.data import DataConfig, SourceConfig
from tokenflow.data.shards import ShardSource, expand_shards
from tokenflow.data.transforms import decode_image


def test_pictures_have_the_short_side_that_was_asked_for(tmp_path):
    write_pictures(tmp_path, count=12, stored_size=96)
    source = ShardSource(expand_shards(str(tmp_path)))
    sizes = [decode_image(source.read(index).image).size for index in range(12)]
    assert {min(size) for size in sizes} == {96} and len(set(sizes)) > 3


@pytest.mark.parametrize("processes", [0, 2])
def test_every_picture_is_worked_on_once(processes, tmp_path):
    def note(content: bytes) -> None:
        (tmp_path / content.decode()).touch(exist_ok=False)

    assert seconds_alone(note, [f"{number}".encode() for number in range(7)], processes=processes) > 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}" for number in range(7)}


def test_decoding_alone_gives_what_the_loader_gives(tmp_path):
    write_pictures(tmp_path, count=2, stored_size=64)
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path)),), image_size=32)
    content = ShardSource(expand_shards(str(tmp_path))).read(0).image
    pixels = partial(decode_and_crop, config=config, rng=random.Random(0))(content)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_has_the_shares(workers):
    options = {"image_size": 32, "crop": "random", "workers": workers, "batch": 4, "pictures": 10, "repeats": 1}
    row = measure(48, argparse.Namespace(**options))
    assert row["pictures"] == 12 and row["workers"] == workers
    # Shares are rounded to three decimals, rates to their own: on a busy machine a share may be as small as 0.02.
    share = row["loader_images_per_s"] / row["decode_images_per_s"]
    assert row["share_of_decode"] == pytest.approx(share, rel=0.01, abs=0.001)
    assert row["share_of_jpeg"] > 0 and row["median_share"] == row["share_of_decode"]

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.data import DataConfig, EvaluationBatches, SourceConfig, write_shapes
from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.data.transforms import to_uint8


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, num_samples=40, image_size=32, seed=0, samples_per_shard=16)
    # training-time augmentation must not reach evaluation
    return DataConfig(
        sources=(SourceConfig(path=str(folder)),), image_size=32, crop="random", flip_probability=1.0, captions="any"
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 12, 35, 40])
def test_every_sample_is_on_one_rank_once(settings, world_size, count):
    found = []
    lengths = set()
    for rank in range(world_size):
        batches = EvaluationBatches(settings, count=count, batch_size=5, rank=rank, world_size=world_size)
        rows = list(batches)
        lengths.add(len(rows))
        assert len(rows) == len(batches) and all(len(batch["images"]) == 5 for batch in rows)
        found += [int(i) for batch in rows for i in batch["index"][batch["mask"]]]
    assert sorted(found) == list(range(count)) and len(lengths) == 1


def test_samples_come_in_order_unchanged(settings):
    batches = EvaluationBatches(settings, count=10, batch_size=4)
    images = torch.cat([to_uint8(batch["images"])[batch["mask"]] for batch in batches]).numpy()
    assert np.array_equal(images, np.stack([draw(SceneSampler(0, "train")[index], 32) for index in range(10)]))


def test_iterating_twice_gives_the_same(settings):
    batches = EvaluationBatches(settings, batch_size=16)
    assert [batch["keys"] for batch in batches] == [batch["keys"] for batch in batches]


def test_a_bad_sample_is_masked_and_named(tmp_path):
    for name in "abc":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    batches = EvaluationBatches(DataConfig(sources=(SourceConfig(path=str(tmp_path)),), image_size=32), batch_size=4)
    (batch,) = list(batches)
    assert batch["mask"].tolist() == [True, False, True, False] and batch["index"].tolist() == [0, 1, 2, -1]
    assert [item.key for item in batches.skipped] == ["b"]


def test_more_samples_than_there_are_is_an_error(settings):
    with pytest.raises(ValueError, match="count 41 samples asked for, the sources hold 40"):
        EvaluationBatches(settings, count=41, batch_size=4)

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.data import DataConfig, EvaluationBatches, SourceConfig, TooManyBadSamples, write_shapes
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
    assert batches.skipped_note().startswith("1 of 3 samples could not be used and were left out, the first b in ")


def test_nothing_is_noted_when_every_sample_is_usable(settings):
    batches = EvaluationBatches(settings, batch_size=16)
    assert len(list(batches)) == 3 and batches.skipped_note() == "" and batches.samples_read == 40


def test_too_many_bad_samples_end_the_evaluation(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    sources = (SourceConfig(path=str(tmp_path)),)
    batches = EvaluationBatches(DataConfig(sources=sources, image_size=32, min_bad_samples=2), batch_size=6)
    for _ in range(2):
        with pytest.raises(TooManyBadSamples, match=r"3 of 3 samples cannot be used.*0 in .*0\.png"):
            list(batches)


def test_shards_behind_the_samples_asked_for_are_not_opened(settings, tmp_path):
    shards = sorted(Path(settings.sources[0].path).glob("*.tar"))
    for shard in shards:
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    for number in range(20):
        (tmp_path / f"z{number:02d}.tar").write_bytes(b"never read")
    sources = (SourceConfig(path=str(tmp_path)), SourceConfig(path=str(tmp_path / "missing")))
    few = EvaluationBatches(dataclasses.replace(settings, sources=sources), count=20, batch_size=4)
    everything = EvaluationBatches(settings, batch_size=4)
    assert [batch["keys"] for batch in few] == [batch["keys"] for batch in everything][:5]
    assert not (tmp_path / "z19.tar.index.json").exists()


@pytest.mark.parametrize(("at_most", "count"), [(12, 12), (40, 40), (1000, 40)])
def test_at_most_takes_what_there_is(settings, at_most, count):
    assert EvaluationBatches(settings, at_most=at_most, batch_size=5).count == count


@pytest.mark.parametrize("sizes", [{"at_most": 0}, {"count": 0}, {"at_most": 3, "count": 3}])
def test_sizes_that_make_no_sense_are_refused(settings, sizes):
    with pytest.raises(ValueError, match="expected"):
        EvaluationBatches(settings, batch_size=5, **sizes)


def test_more_samples_than_there_are_is_an_error(settings):
    with pytest.raises(ValueError, match="count 41 samples asked for, the sources hold 40"):
        EvaluationBatches(settings, count=41, batch_size=4)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(settings, num_workers):
    here = list(EvaluationBatches(settings, count=35, batch_size=5, rank=1, world_size=2))
    workers = EvaluationBatches(settings, count=35, batch_size=5, rank=1, world_size=2, num_workers=num_workers)
    there = list(workers)
    assert len(here) == len(there) == len(workers)
    for one, two in zip(here, there, strict=True):
        assert one.keys() == two.keys() and one["keys"] == two["keys"]
        assert all(torch.equal(one[name], two[name]) for name in ("images", "mask", "index"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_continuing_gives_the_rest_and_counts_what_was_left_out_before(tmp_path, num_workers):
    for number in range(10):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number}.png")
    for number in (1, 7):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path)),), image_size=32)
    whole = EvaluationBatches(config, batch_size=3)
    everything = list(whole)
    rest = EvaluationBatches(config, batch_size=3, num_workers=num_workers)
    continued = list(rest.starting_at(2, skipped=whole.skipped[:1]))
    assert [batch["keys"] for batch in continued] == [batch["keys"] for batch in everything[2:]]
    assert rest.skipped == whole.skipped and rest.samples_read == whole.samples_read == 10
    assert list(rest.starting_at(4, skipped=whole.skipped)) == [] and rest.skipped_note() == whole.skipped_note()


def test_the_stamp_changes_with_the_files_that_are_asked_for_and_with_no_others(settings, tmp_path):
    for shard in sorted(Path(settings.sources[0].path).glob("*.tar")):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    config = dataclasses.replace(settings, sources=(SourceConfig(path=str(tmp_path)),))
    stamps = [
        EvaluationBatches(config, count=count, batch_size=4, num_workers=n).stamp() for count, n in ((20, 0), (20, 2))
    ]
    (tmp_path / "z.tar").write_bytes(b"never read")
    stamps.append(EvaluationBatches(config, count=20, batch_size=4).stamp())
    assert len(set(stamps)) == 1
    first = min(tmp_path.glob("*.tar"))
    first.write_bytes(first.read_bytes() + b"\0" * 512)
    assert EvaluationBatches(config, count=20, batch_size=4).stamp() != stamps[0]

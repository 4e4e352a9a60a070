import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.data import Cursor, DataConfig, Loader, SourceConfig, TooManyBadSamples, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    for name, count, seed in (("a", 70, 0), ("b", 50, 1)):
        write_shapes(folder / name, num_samples=count, image_size=32, seed=seed, samples_per_shard=16)
    return folder


def config(shapes, *, names="a", weights=(1.0,), **changes):
    sources = tuple(SourceConfig(path=str(shapes / n), weight=w) for n, w in zip(names, weights, strict=True))
    return DataConfig(sources=sources, image_size=32, captions="any", **changes)


def take(loader, count):
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


def same(first, second):
    return (
        torch.equal(first["images"], second["images"])
        and torch.equal(first["index"], second["index"])
        and torch.equal(first["sample_seed"], second["sample_seed"])
        and first["keys"] == second["keys"]
        and first["captions"] == second["captions"]
    )


SIZES = {"global_batch_size": 16, "micro_batch_size": 4, "seed": 3}
VARIED = {"crop": "random", "flip_probability": 0.5}


def test_a_batch_has_pictures_in_minus_one_to_one_captions_and_keys(shapes):
    (batch, cursor), *_ = take(Loader(config(shapes, records=True), **SIZES), 1)
    assert batch["images"].shape == (4, 3, 32, 32) and batch["images"].dtype == torch.float32
    assert -1 <= batch["images"].min() < batch["images"].max() <= 1
    assert all(
        caption in record["captions"] for caption, record in zip(batch["captions"], batch["records"], strict=True)
    )
    assert len(set(batch["keys"])) == 4 and batch["index"].tolist() == [0, 1, 2, 3]
    assert cursor.samples == 0  # the step is not over


def test_captions_come_from_the_list_that_is_named_or_from_the_text_where_there_is_none(shapes):
    def read(**changes):
        batches = take(Loader(config(shapes, records=True, **changes), **SIZES), 16)
        return [pair for batch, _ in batches for pair in zip(batch["captions"], batch["records"], strict=True)]

    named = read(captions_from="captions_in_any_order")
    assert all(caption in record["captions_in_any_order"] for caption, record in named)
    assert any(caption not in record["captions"] for caption, record in named)
    assert all(caption == record["captions"][0] for caption, record in read(captions_from="nothing"))


def test_an_epoch_has_every_sample_once(shapes):
    loader = Loader(config(shapes), global_batch_size=10, micro_batch_size=10, seed=0)
    assert loader.steps_per_epoch == 7
    epochs = [[key for batch, _ in [next(loader) for _ in range(7)] for key in batch["keys"]] for _ in range(2)]
    assert all(len(set(epoch)) == 70 for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_read_the_slices_of_one_global_order(shapes, world_size):
    settings = config(shapes, names="ab", weights=(2, 1), **VARIED)
    whole = take(Loader(settings, **SIZES), 8)
    accumulation = 4 // world_size
    for rank in range(world_size):
        mine = take(Loader(settings, rank=rank, world_size=world_size, **SIZES), 2 * accumulation)
        for number, (batch, cursor) in enumerate(mine):
            step, a = divmod(number, accumulation)
            expected, _ = whole[4 * step + rank * accumulation + a]
            assert same(batch, expected)
            assert cursor.samples == 16 * ((number + 1) // accumulation)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 9])
def test_a_resumed_run_sees_the_batches_of_an_unbroken_one(shapes, workers, stop):
    # 12 steps of 16 cross two epochs of source a (70 samples)
    settings = config(shapes, names="ab", weights=(3, 1), num_workers=workers, **VARIED)
    unbroken = take(Loader(config(shapes, names="ab", weights=(3, 1), **VARIED), **SIZES), 48)
    _, cursor = take(Loader(settings, **SIZES), 4 * stop)[-1]
    cursor = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
    resumed = take(Loader(settings, cursor=cursor, **SIZES), 48 - 4 * stop)
    assert all(same(batch, expected) for (batch, _), (expected, _) in zip(resumed, unbroken[4 * stop :], strict=True))
    assert resumed[-1][1] == unbroken[-1][1]


def test_a_cursor_resumes_at_another_world_size_and_batch(shapes):
    settings = config(shapes)
    unbroken = take(Loader(settings, **SIZES), 12)
    cursor = unbroken[7][1]
    assert cursor.samples == 32
    second = take(Loader(settings, cursor=cursor, rank=1, world_size=2, **SIZES), 2)
    assert all(same(batch, expected) for (batch, _), (expected, _) in zip(second, unbroken[10:], strict=True))
    wide = take(Loader(settings, cursor=cursor, global_batch_size=8, micro_batch_size=8, seed=3), 2)
    assert torch.cat([batch["index"] for batch, _ in wide]).tolist() == list(range(32, 48))


def test_a_cursor_inside_a_step_repeats_the_step(shapes):
    loader = Loader(config(shapes), **SIZES)
    cursors = [cursor.samples for _, cursor in take(loader, 9)]
    assert cursors == [0, 0, 0, 16, 16, 16, 16, 32, 32]


def test_a_far_cursor_is_reached_at_once(shapes):
    settings = config(shapes, names="ab", weights=(3, 1))
    far = Loader(settings, **SIZES).cursor_at(16 * 10**9)
    batch, cursor = take(Loader(settings, cursor=far, **SIZES), 4)[-1]
    assert cursor.samples == 16 * 10**9 + 16 and batch["index"][0] == 16 * 10**9 + 12


def test_a_cursor_of_other_data_is_refused(shapes):
    cursor = Loader(config(shapes), **SIZES).cursor_at(16)
    for other in (config(shapes, names="b"), config(shapes, names="ab", weights=(1, 1))):
        with pytest.raises(ValueError, match="the cursor was written with sources"):
            Loader(other, cursor=cursor, **SIZES)


def test_another_seed_gives_another_order(shapes):
    first, second = (take(Loader(config(shapes), **{**SIZES, "seed": seed}), 1)[0][0] for seed in (0, 1))
    assert first["keys"] != second["keys"]


def test_mixture_shares_follow_the_weights(shapes):
    loader = Loader(config(shapes, names="ab", weights=(3, 1)), **SIZES)
    (_, a, _), (_, b, _) = loader.cursor_at(6400).sources
    assert (a, b) == (4800, 1600)


def test_sizes_that_do_not_divide_are_refused(shapes):
    with pytest.raises(ValueError, match="must be a positive multiple of micro_batch_size x world_size = 4 x 3 = 12"):
        Loader(config(shapes), world_size=3, **SIZES)
    with pytest.raises(ValueError, match="rank 2 must lie in"):
        Loader(config(shapes), rank=2, world_size=2, **SIZES)


def test_fewer_samples_than_a_batch_is_an_error(shapes):
    with pytest.raises(ValueError, match="hold 70 samples, fewer than one global batch of 128"):
        Loader(config(shapes), global_batch_size=128, micro_batch_size=4, seed=0)


def test_configurations_that_make_no_sense_are_refused(shapes):
    for changes, message in (
        ({"flip_probability": 2.0}, "flip_probability 2.0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"min_crop_fraction": 0.0}, "min_crop_fraction 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            config(shapes, **changes)
    with pytest.raises(ValueError, match="sources is empty"):
        DataConfig(sources=(), image_size=32)
    with pytest.raises(ValueError, match="must be positive"):
        SourceConfig(path="x", weight=0)


def test_the_reader_travels_to_spawned_workers(shapes):
    loader = Loader(config(shapes), **SIZES)
    first = loader.reader.read(5)[0]
    again = pickle.loads(pickle.dumps(loader.reader)).read(5)[0]
    assert first.key == again.key and np.array_equal(first.pixels, again.pixels)


def shard_with_bad_samples(folder, *, count, bad):
    """`count` samples of which every sample of `bad` is damaged in its own way."""
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w") as archive:
        for number in range(count):
            stream = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(stream, format="PNG")
            content = stream.getvalue()
            if number in bad:
                content = [b"", b"not a picture", content[:500]][number % 3]
            info = tarfile.TarInfo(f"{number:04d}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return DataConfig(sources=(SourceConfig(path=str(folder)),), image_size=32)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_replaced_counted_and_named(tmp_path, workers, caplog):
    bad = {3, 50, 77}
    settings = shard_with_bad_samples(tmp_path / "s", count=100, bad=bad)
    sizes = {"global_batch_size": 20, "micro_batch_size": 20, "seed": 0}
    with caplog.at_level(logging.WARNING):
        loader = Loader(DataConfig(**{**vars(settings), "num_workers": workers}), **sizes)
        batches = take(loader, 5)
    keys = [key for batch, _ in batches for key in batch["keys"]]
    assert len(keys) == 100 and not {f"{number:04d}" for number in bad} & set(keys)
    # a replacement may be unusable as well, so a bad sample can be met twice
    assert {item.key for item in loader.skipped} == {f"{number:04d}" for number in bad}
    assert all(item.where.endswith("x.tar") for item in loader.skipped)
    assert "0003" in caplog.text and "x.tar" in caplog.text
    again = take(Loader(settings, **sizes), 5)
    assert all(same(a, b) for (a, _), (b, _) in zip(batches, again, strict=True))


def test_too_many_bad_samples_stop_the_run_and_are_named(tmp_path):
    settings = shard_with_bad_samples(tmp_path / "s", count=60, bad=set(range(0, 60, 3)))
    loader = Loader(settings, global_batch_size=10, micro_batch_size=10, seed=0)
    with pytest.raises(
        TooManyBadSamples, match=r"cannot be used, more than data\.max_bad_fraction 0\.01.*x\.tar.*make-shards"
    ):
        take(loader, 6)
    assert len(loader.skipped) > 10


def test_a_few_bad_samples_of_a_small_folder_stop_no_run_however_often_they_come_round(tmp_path):
    settings = shard_with_bad_samples(tmp_path / "s", count=40, bad={3, 17, 30})
    loader = Loader(settings, global_batch_size=10, micro_batch_size=10, seed=0)
    take(loader, 30)
    assert len(loader.skipped) == 3 and loader.bad_reads > settings.min_bad_samples


def test_a_source_of_nothing_but_garbage_says_so(tmp_path):
    settings = shard_with_bad_samples(tmp_path / "s", count=20, bad=set(range(20)))
    with pytest.raises(ValueError, match="in a row are unusable"):
        take(Loader(settings, global_batch_size=4, micro_batch_size=4, seed=0), 1)


def test_captions_that_are_not_utf8_do_not_lose_the_picture(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xff")
    settings = DataConfig(sources=(SourceConfig(path=str(tmp_path)),), image_size=32)
    (batch, _), *_ = take(Loader(settings, global_batch_size=1, micro_batch_size=1, seed=0), 1)
    assert batch["captions"][0].startswith("caf")


def test_a_json_that_cannot_be_parsed_is_a_bad_sample(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.json").write_text("{broken")
    settings = DataConfig(sources=(SourceConfig(path=str(tmp_path)),), image_size=32)
    loader = Loader(settings, global_batch_size=2, micro_batch_size=2, seed=0)
    take(loader, 1)
    assert {item.key for item in loader.skipped} == {"a"}


def test_sources_of_the_same_folder_name_stay_apart(tmp_path):
    for parent in ("x", "y"):
        (tmp_path / parent / "train").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / parent / "train" / "a.png")
    sources = tuple(SourceConfig(path=str(tmp_path / parent / "train")) for parent in ("x", "y"))
    loader = Loader(DataConfig(sources=sources, image_size=32), global_batch_size=2, micro_batch_size=1, seed=0)
    assert [name for name, _, _ in loader.cursor_at(0).sources] == ["train", "train#2"]

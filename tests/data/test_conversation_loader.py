import json
import logging
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from tokenflow.data import ConversationConfig, ConversationLoader, ConversationSourceConfig, Cursor, TooManyBadSamples
from tokenflow.data.samples import BadSample
from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.data.world_conversations import write_conversations

SIZES = {"global_batch_size": 8, "micro_batch_size": 2, "seed": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    from tokenflow.data import write_shapes

    write_shapes(folder / "shards", num_samples=40, image_size=32, seed=0, samples_per_shard=16)
    write_conversations(folder, num_scenes=40, seed=0, turns=3)
    return folder


def config(world, *names, **changes):
    sources = tuple(ConversationSourceConfig(path=str(world / name), images=str(world / "shards")) for name in names)
    return ConversationConfig(sources=sources, **changes)


MIXED = ("questions.jsonl", "text.jsonl")


def take(loader, count):
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


def ids(taken):
    return [sample.id for batch, _ in taken for sample in batch["samples"]]


def test_a_sample_has_the_picture_and_the_turns_of_its_scene(world):
    for batch, _ in take(ConversationLoader(config(world, "questions.jsonl"), **SIZES), 4):
        for sample in batch["samples"]:
            scene = SceneSampler(0, "train")[int(sample.id.rpartition("-")[2])]
            (image,) = sample.images
            assert sample.image_names == (f"{sample.id.removeprefix('questions-')}.png",)
            assert np.array_equal(np.asarray(image), draw(scene, 32))
            assert [role for role, _ in sample.turns] == ["user", "assistant"] * 3
            assert sample.turns[0][1].startswith("<image>\n")


@pytest.mark.parametrize("grouping", ["none", "modality", "modality_and_length"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_read_the_slices_of_one_global_order(world, grouping, world_size):
    settings = config(world, *MIXED, grouping=grouping, grouping_batches=4)
    whole = take(ConversationLoader(settings, **SIZES), 12)
    accumulation = 4 // world_size
    for rank in range(world_size):
        mine = take(ConversationLoader(settings, rank=rank, world_size=world_size, **SIZES), 3 * accumulation)
        for number, (batch, cursor) in enumerate(mine):
            step, a = divmod(number, accumulation)
            expected, _ = whole[4 * step + rank * accumulation + a]
            assert ids([(batch, None)]) == ids([(expected, None)])
            assert batch["index"].tolist() == expected["index"].tolist()
            assert cursor.samples == 8 * ((number + 1) // accumulation)


@pytest.mark.parametrize("grouping", ["none", "modality_and_length"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_conversations_of_an_unbroken_one(world, grouping, workers):
    # 15 steps of 8 cross the end of an epoch of 80
    settings = config(world, *MIXED, grouping=grouping, grouping_batches=4, num_workers=workers)
    unbroken = take(ConversationLoader(settings, **SIZES), 60)
    for stop in (1, 7, 11):
        cursor = Cursor.from_json(json.loads(json.dumps(unbroken[4 * stop - 1][1].to_json())))
        resumed = take(ConversationLoader(settings, cursor=cursor, **SIZES), 60 - 4 * stop)
        assert ids(resumed) == ids(unbroken[4 * stop :])
        seeds = [[sample.seed for batch, _ in taken for sample in batch["samples"]] for taken in (resumed, unbroken)]
        assert seeds[0] == seeds[1][8 * stop :]


@pytest.mark.parametrize("grouping", ["none", "modality_and_length"])
def test_an_epoch_has_every_conversation_once(world, grouping):
    loader = ConversationLoader(config(world, "questions.jsonl", grouping=grouping, grouping_batches=2), **SIZES)
    assert loader.steps_per_epoch == 5
    found = ids(take(loader, 60))
    assert all(len(set(found[start : start + 40])) == 40 for start in (0, 40, 80))
    assert len({tuple(found[start : start + 40]) for start in (0, 40, 80)}) == 3


def test_sources_are_mixed_by_their_sizes_or_by_their_weights(world):
    sources = [ConversationSourceConfig(path=str(world / name), images=str(world / "shards")) for name in MIXED]
    heavy = [
        ConversationSourceConfig(path=s.path, images=s.images, weight=w) for s, w in zip(sources, (3, 1), strict=True)
    ]
    for chosen, share in ((sources, 0.5), (heavy, 0.75)):
        found = ids(take(ConversationLoader(ConversationConfig(sources=tuple(chosen)), **SIZES), 160))
        assert abs(np.mean(["questions" in name for name in found]) - share) < 0.02


def test_a_cursor_of_other_data_is_refused(world):
    cursor = ConversationLoader(config(world, *MIXED), **SIZES).cursor_at(16)
    with pytest.raises(ValueError, match="the cursor was written with sources"):
        ConversationLoader(config(world, "text.jsonl"), cursor=cursor, **SIZES)


@dataclass(frozen=True)
class Upper:
    """A preparation that refuses conversations about stars."""

    def __call__(self, sample):
        if any("star" in text for _, text in sample.turns):
            raise BadSample("stars are too long")
        return " ".join(text for _, text in sample.turns).upper()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_prepares_conversations_in_the_workers_and_may_refuse_them(world, workers):
    settings = config(world, "captions.jsonl", num_workers=workers, max_bad_fraction=1.0)
    loader = ConversationLoader(settings, prepare=Upper(), **SIZES)
    found = [text for batch, _ in [next(loader) for _ in range(12)] for text in batch["samples"]]
    assert all(text == text.upper() and "STAR" not in text for text in found)
    assert loader.skipped and all(item.reason == "stars are too long" for item in loader.skipped)
    assert all(
        item.where.endswith("captions.jsonl") and item.key.startswith("captions-train-") for item in loader.skipped
    )
    loader.close()


def conversation(number, *, image=None):
    fields = {} if image is None else {"image": image}
    question = "Q" if image is None else "<image> Q"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A"}]
    return {"id": f"c{number}", **fields, "conversations": turns}


def test_a_missing_or_damaged_picture_is_named_counted_and_replaced_by_one_with_a_picture(tmp_path, caplog):
    Image.new("RGB", (9, 5)).save(tmp_path / "good.png")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG nothing")
    names = ["missing.png", "damaged.png", *["good.png"] * 14, *[None] * 16]
    lines = [json.dumps(conversation(number, image=name)) for number, name in enumerate(names)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    sources = (ConversationSourceConfig(path=str(tmp_path / "x.jsonl"), images=str(tmp_path)),)
    with caplog.at_level(logging.WARNING):
        loader = ConversationLoader(ConversationConfig(sources=sources, grouping="modality"), **SIZES)
        taken = take(loader, 16)
    assert {"c0", "c1"} == {item.key for item in loader.skipped} and loader.bad_reads == 2
    assert (
        "missing.png" in caplog.text and "c0 in" in caplog.text and "damaged.png: the picture cannot be" in caplog.text
    )
    assert sum(len(sample.images) for batch, _ in taken for sample in batch["samples"]) == 16


def test_bad_conversations_are_named_at_the_start_and_are_no_part_of_the_order(tmp_path, caplog):
    records = [conversation(number) for number in range(16)] + [{"id": "bad", "conversations": []}]
    (tmp_path / "x.json").write_text(json.dumps(records))
    sources = (ConversationSourceConfig(path=str(tmp_path / "x.json")),)
    with caplog.at_level(logging.WARNING):
        loader = ConversationLoader(ConversationConfig(sources=sources), **SIZES)
    assert loader.total_samples == 16 and loader.reader.num_refused == 1
    assert f"skipped bad in {tmp_path / 'x.json'}: it has no conversations" in caplog.text
    assert set(ids(take(loader, 8))) == {f"c{number}" for number in range(16)}


def test_too_many_bad_conversations_stop_the_run_before_it_starts(tmp_path):
    records = [conversation(number) for number in range(20)] + [{"id": "bad"}] * 11
    (tmp_path / "x.json").write_text(json.dumps(records))
    sources = (ConversationSourceConfig(path=str(tmp_path / "x.json")),)
    with pytest.raises(TooManyBadSamples, match=r"11 of 31 samples .*bad in .*x\.json: it has no conversations"):
        ConversationLoader(ConversationConfig(sources=sources), **SIZES)


def test_too_many_missing_pictures_stop_the_run(tmp_path):
    Image.new("RGB", (9, 5)).save(tmp_path / "good.png")
    lines = [json.dumps(conversation(n, image="good.png" if n % 2 else "missing.png")) for n in range(32)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    sources = (ConversationSourceConfig(path=str(tmp_path / "x.jsonl"), images=str(tmp_path)),)
    with pytest.raises(TooManyBadSamples, match=r"cannot be used, more than data\.max_bad_fraction"):
        take(ConversationLoader(ConversationConfig(sources=sources), **SIZES), 40)


def test_a_file_without_conversations_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no conversation that can be used"):
        ConversationLoader(
            ConversationConfig(sources=(ConversationSourceConfig(path=str(tmp_path / "x.jsonl")),)), **SIZES
        )


def test_weights_are_given_for_all_sources_or_none():
    sources = (ConversationSourceConfig(path="a.json", weight=1.0), ConversationSourceConfig(path="b.json"))
    with pytest.raises(ValueError, match="give all of them one, or none"):
        ConversationConfig(sources=sources)

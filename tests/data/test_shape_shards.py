import io
import json

import numpy as np
import pytest
import webdataset
from PIL import Image

from tokenflow.data.shape_shards import write_shapes
from tokenflow.data.shapes import Scene, SceneSampler, draw
from tokenflow.data.shards import ShardSource, expand_shards
from tokenflow.data.verifier import matches


def write(folder, **changes):
    settings = {"num_samples": 50, "image_size": 32, "seed": 0, "split": "train", "samples_per_shard": 20}
    return write_shapes(folder, **{**settings, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    write(tmp_path / "c", seed=1)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_manifest_counts_every_shard(tmp_path):
    import hashlib

    manifest = json.loads(write(tmp_path).read_text())
    assert [shard["samples"] for shard in manifest["shards"]] == [20, 20, 10] and manifest["samples"] == 50
    for shard in manifest["shards"]:
        content = (tmp_path / shard["name"]).read_bytes()
        assert len(content) == shard["bytes"] and hashlib.sha256(content).hexdigest() == shard["sha256"]


def test_real_webdataset_reads_our_shards(tmp_path):
    write(tmp_path)
    dataset = webdataset.WebDataset(expand_shards(str(tmp_path)), shardshuffle=False).decode("rgb8")
    samples = list(dataset)
    assert len(samples) == 50
    for index, sample in enumerate(samples):
        scene = SceneSampler(0, "train")[index]
        assert Scene.from_json(sample["json"]["scene"]) == scene
        assert np.array_equal(sample["png"], draw(scene, 32))
        assert sample["txt"] == sample["json"]["captions"][0]
        assert {"question", "answer", "kind"} <= set(sample["json"]["questions"][0])


def test_pictures_in_shards_match_their_scenes(tmp_path):
    write(tmp_path, split="heldout", image_size=64, num_samples=20)
    source = ShardSource(expand_shards(str(tmp_path)))
    for index in range(20):
        raw = source.read(index)
        image = np.asarray(Image.open(io.BytesIO(raw.image)))
        assert matches(Scene.from_json(json.loads(raw.record)["scene"]), image)


def test_a_complete_data_set_is_left_alone_and_a_damaged_one_is_written_again(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    stamp = (tmp_path / "shapes-000000.tar").stat().st_mtime_ns
    write(tmp_path)
    assert (tmp_path / "shapes-000000.tar").stat().st_mtime_ns == stamp
    (tmp_path / "shapes-000001.tar").write_bytes(b"cut off")
    write(tmp_path)
    assert contents(tmp_path) == before


def test_no_partial_files_remain(tmp_path):
    write(tmp_path)
    assert not [name for name in contents(tmp_path) if "partial" in name]


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_samples 0"):
        write(tmp_path, num_samples=0)

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tokenflow.data.config import SourceConfig
from tokenflow.data.samples import BadSample
from tokenflow.data.shards import ShardSource, expand_shards, index_shard
from tokenflow.data.sources import open_source


def picture(number, *, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(stream, format=kind)
    return stream.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def write_shards(folder, *, shards=3, samples=10):
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        members = []
        for number in range(shard * samples, (shard + 1) * samples):
            members += [(f"{number:04d}.png", picture(number)), (f"{number:04d}.txt", f"picture {number}".encode())]
        write_tar(folder / f"{shard:03d}.tar", members)
    return folder


def test_any_sample_is_read_without_its_predecessors(tmp_path):
    source = ShardSource(expand_shards(str(write_shards(tmp_path / "s"))))
    assert list(source.shard_sizes) == [10, 10, 10]
    for index in (29, 0, 10, 9, 17):
        raw = source.read(index)
        assert raw.key == f"{index:04d}" and raw.text == f"picture {index}".encode() and raw.image == picture(index)
        assert source.describe(index) == (raw.key, raw.where) and raw.where.endswith(f"{index // 10:03d}.tar")


def test_shards_of_webdatasets_own_writer_are_read(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "w-%04d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            extension, kind = [("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")][number % 4]
            content = {
                extension: picture(number, kind=kind),
                "json": {"n": number},
                "cls": number,
                "txt": f"p {number}",
            }
            writer.write({"__key__": f"sub/folder.x/{number}", **content})
    source = ShardSource(expand_shards(str(tmp_path / "w-{0000..0002}.tar")))
    assert list(source.shard_sizes) == [4, 4, 2]
    expected = list(webdataset.WebDataset(expand_shards(str(tmp_path)), shardshuffle=False))
    for index, sample in enumerate(expected):
        raw = source.read(index)
        assert raw.key == sample["__key__"] and raw.text == sample["txt"]
        assert json.loads(raw.record) == {"n": index} and raw.image in sample.values()


def test_the_index_is_kept_beside_the_shard_and_follows_its_changes(tmp_path):
    folder = write_shards(tmp_path / "s", shards=1)
    path = str(folder / "000.tar")
    first = index_shard(path)
    assert (folder / "000.tar.index.json").is_file() and index_shard(path) == first
    write_tar(folder / "000.tar", [("only.png", picture(1))])
    assert [key for key, _ in index_shard(path)] == ["only"]


def test_the_index_stays_in_memory_where_it_cannot_be_written(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "s", shards=1)

    def refuse(*_):
        raise PermissionError("read-only")

    # root may write anywhere, so the folder's mode alone would test nothing
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert ShardSource([str(folder / "000.tar")]).read(3).key == "0003"
    assert [path.name for path in folder.iterdir()] == ["000.tar"]


def test_a_mistyped_path_names_what_is_there_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    folder = write_shards(tmp_path / "pictures" / "train")
    mistyped = (("pictures/trian", folder), ("picture/train", tmp_path / "pictures"), ("pictures", folder))
    for path, expected in mistyped:
        with pytest.raises(ValueError) as error:
            open_source(SourceConfig(path=str(tmp_path / path)))
        assert repr(str(expected)) in str(error.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"there is no '{tmp_path}/elsewhere'"):
        open_source(SourceConfig(path="elsewhere/train"))


def test_a_manifest_spares_opening_shards(tmp_path):
    folder = write_shards(tmp_path / "s")
    shards = [{"name": f"{number:03d}.tar", "samples": 10} for number in range(3)]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    source = ShardSource(expand_shards(str(folder)))
    assert sum(source.shard_sizes) == 30 and not list(folder.glob("*.index.json"))
    source.read(15)
    # seeking touches the one shard
    assert [path.name for path in folder.glob("*.index.json")] == ["001.tar.index.json"]


def test_patterns_and_folders_expand(tmp_path):
    folder = write_shards(tmp_path / "s")
    names = [str(folder / f"{number:03d}.tar") for number in range(3)]
    for pattern in (str(folder), str(folder / "*.tar"), str(folder / "{000..002}.tar")):
        assert expand_shards(pattern) == names
    assert expand_shards(names[1]) == names[1:2]


def test_paths_that_match_nothing_are_named(tmp_path):
    folder = write_shards(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"003\.tar' does not exist"):
        expand_shards(str(folder / "{000..003}.tar"))
    with pytest.raises(ValueError, match=r"no \.tar shards match"):
        expand_shards(str(folder / "x*.tar"))
    with pytest.raises(ValueError, match=r"nowhere' does not exist\. Give a folder"):
        open_source(SourceConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="holds no pictures"):
        open_source(SourceConfig(path=str(tmp_path / "empty")))
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="needs uncompressed shards"):
        expand_shards(str(tmp_path / "x.tar.gz"))


def test_a_truncated_tar_keeps_its_whole_samples_and_counts_the_damage(tmp_path):
    folder = write_shards(tmp_path / "s", shards=1)
    path = folder / "000.tar"
    path.write_bytes(path.read_bytes()[: 5 * 2048 + 700])
    source = ShardSource([str(path)])
    assert [source.read(index).key for index in range(5)] == [f"{index:04d}" for index in range(5)]
    with pytest.raises(BadSample, match=r"the tar is damaged|no picture"):
        source.read(sum(source.shard_sizes) - 1)


def test_a_shard_shorter_than_its_manifest_has_bad_samples(tmp_path):
    folder = write_shards(tmp_path / "s", shards=1)
    (folder / "manifest.json").write_text(json.dumps({"shards": [{"name": "000.tar", "samples": 12}]}))
    source = ShardSource([str(folder / "000.tar")])
    assert source.read(9).key == "0009"
    with pytest.raises(BadSample, match="damaged"):
        source.read(11)
    assert source.describe(11)[1].endswith("000.tar")


def test_garbage_is_one_bad_sample(tmp_path):
    (tmp_path / "g.tar").write_bytes(b"garbage" * 1000)
    source = ShardSource([str(tmp_path / "g.tar")])
    assert list(source.shard_sizes) == [1]
    with pytest.raises(BadSample, match="damaged"):
        source.read(0)


def test_odd_members_are_no_samples(tmp_path):
    path = tmp_path / "odd.tar"
    write_tar(
        path, [("README", b"x"), (".hidden", b"x"), ("a.png", picture(1)), ("a.TXT", b"one"), ("a.seg.png", b"?")]
    )
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    source = ShardSource([str(path)])
    assert sum(source.shard_sizes) == 1 and source.read(0).text == b"one"


def test_a_repeated_key_starts_a_new_sample(tmp_path):
    path = write_tar(tmp_path / "r.tar", [("a.png", picture(1)), ("a.png", picture(2))])
    source = ShardSource([path])
    assert [source.read(index).image for index in range(2)] == [picture(1), picture(2)]


def test_folders_are_read_recursively_with_captions(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b.png", "sub/a.JPG", ".cache/x.png", "sub/note.md"):
        (tmp_path / name).write_bytes(picture(1))
    (tmp_path / "b.txt").write_text("a grey square")
    source = open_source(SourceConfig(path=str(tmp_path)))
    assert [source.describe(index)[0] for index in range(2)] == ["b", "sub/a"]
    assert source.read(0).text == b"a grey square" and source.read(1).text is None
    (tmp_path / "b.png").unlink()
    with pytest.raises(BadSample, match="cannot be read"):
        source.read(0)

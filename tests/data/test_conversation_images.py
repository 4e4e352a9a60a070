import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from tokenflow.data import CodesDescription, ConversationConfig, ConversationSourceConfig, SourceConfig
from tokenflow.data.code_shards import CodeShards
from tokenflow.data.codes import codes_of_conversations
from tokenflow.data.conversation_images import open_images
from tokenflow.data.samples import BadSample


def png(level):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


LEVELS = {"a.jpg": 10, "coco/train/000.JPG": 20, "coco/val/000.jpg": 30, "b.c.png": 40}
FILES = {name: png(level) for name, level in LEVELS.items()}
DESCRIPTION = CodesDescription(tokenizer="runs/tok", fingerprint="f", image_size=4, scales=(1, 2), codebook_size=64)


@pytest.fixture(params=["folder", "shards"])
def store(request, tmp_path):
    names = sorted(FILES)
    if request.param == "folder":
        for name in names:
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / name).write_bytes(FILES[name])
        return open_images(str(tmp_path / "images"))
    (tmp_path / "images").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "images" / f"{number}.tar", "w") as archive:
            for name in names[number::2]:
                member = tarfile.TarInfo("./" + name)
                member.size = len(FILES[name])
                archive.addfile(member, io.BytesIO(FILES[name]))
    return open_images(str(tmp_path / "images"))


def test_pictures_are_found_by_name(store):
    for each in (store, pickle.loads(pickle.dumps(store))):
        assert {name: each.read(name).getpixel((0, 0))[0] for name in FILES} == LEVELS
        assert each.read("./coco/../a.jpg").getpixel((0, 0)) == (10, 10, 10)


def encoded(tmp_path):
    """A folder of pictures and one of their codes: the first pixel's level, five times."""
    for name, content in {**FILES, "bad.png": b"no picture"}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(content)
    shards = CodeShards(SourceConfig(path=str(tmp_path / "images")), tmp_path / "codes", description=DESCRIPTION)
    assert shards.run(
        lambda x: ((x[:, 0, 0, :1] + 1) * 127.5).round().long().expand(-1, DESCRIPTION.num_codes), batch_size=2
    )
    return tmp_path / "codes"


def test_codes_are_found_by_the_names_of_their_pictures(tmp_path):
    store = open_images(str(encoded(tmp_path)))
    for each in (store, pickle.loads(pickle.dumps(store))):
        for name, level in LEVELS.items():
            codes = each.read(name)
            assert codes.dtype == np.int64 and codes.tolist() == [level] * DESCRIPTION.num_codes
    with pytest.raises(BadSample, match=r"bad\.png: it has no codes"):
        store.read("bad.png")
    with pytest.raises(BadSample, match=r"there is no picture 'd\.codes\.npy'"):
        store.read("d.png")


def test_a_run_on_conversations_sees_pictures_or_codes_of_one_tokenizer(tmp_path):
    codes = encoded(tmp_path)
    source = ConversationSourceConfig(path="some.jsonl", images=str(codes))
    assert codes_of_conversations(ConversationConfig(sources=(source,))) == DESCRIPTION
    assert codes_of_conversations(ConversationConfig(sources=(ConversationSourceConfig(path="text.jsonl"),))) is None
    pictures = ConversationSourceConfig(path="others.jsonl", images=str(tmp_path / "images"))
    with pytest.raises(ValueError, match="reads pictures, or codes of one tokenizer"):
        codes_of_conversations(ConversationConfig(sources=(source, pictures)))
    (codes / "manifest.json").unlink()
    with pytest.raises(ValueError, match="its encoding was not finished"):
        open_images(str(codes))


def test_a_missing_picture_is_named(store):
    with pytest.raises(BadSample, match=r"coco/test/000\.jpg"):
        store.read("coco/test/000.jpg")


def test_files_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "images").mkdir()
    store = open_images(str(tmp_path / "images"))
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        with pytest.raises(BadSample, match="lies outside"):
            store.read(name)


def test_an_absolute_path_into_the_folder_will_do(tmp_path):
    (tmp_path / "a.jpg").write_bytes(FILES["a.jpg"])
    assert open_images(str(tmp_path)).read(str(tmp_path / "a.jpg")).getpixel((0, 0)) == (10, 10, 10)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"A")
    with pytest.raises(BadSample, match=r"^a\.jpg: "):
        open_images(str(tmp_path)).read("a.jpg")


def test_a_source_without_pictures_says_so():
    with pytest.raises(BadSample, match="its source has no images"):
        open_images(None).read("a.jpg")


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_images(str(tmp_path / "nowhere"))

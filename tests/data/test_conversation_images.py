import io
import pickle
import tarfile

import pytest

from tokenflow.data.conversation_images import open_images
from tokenflow.data.samples import BadSample

FILES = {"a.jpg": b"A", "coco/train/000.JPG": b"upper", "coco/val/000.jpg": b"other", "b.c.png": b"dots"}


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
        assert {name: each.read(name) for name in FILES} == FILES
        assert each.read("./coco/../a.jpg") == b"A"


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
    (tmp_path / "a.jpg").write_bytes(b"A")
    assert open_images(str(tmp_path)).read(str(tmp_path / "a.jpg")) == b"A"


def test_a_source_without_pictures_says_so():
    with pytest.raises(BadSample, match="its source has no images"):
        open_images(None).read("a.jpg")


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_images(str(tmp_path / "nowhere"))

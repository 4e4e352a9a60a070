"""Face detectors on the photographs that scikit-image and scikit-learn carry."""

import importlib
import pickle

import numpy as np
import pytest

from benchmarks import faces
from tokenflow.data import face_detectors
from tokenflow.data.face_detectors import HaarFaces, LbpFaces, YuNetFaces, face_detector
from tokenflow.data.photographs import photograph

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

HEAD = (165, 60, 110, 130)
"""x, y, width, height of the astronaut's face, measured by hand."""
KINDS = {"lbp": LbpFaces, "haar": HaarFaces}


@pytest.fixture(params=sorted(KINDS))
def detector(request):
    detector = KINDS[request.param]()
    if request.param == "haar":
        cv2 = pytest.importorskip("cv2")
        if int(cv2.__version__.split(".")[0]) > 4:
            pytest.skip("OpenCV 5 carries no cascades")
    detector.check()
    return detector


def astronaut():
    return np.asarray(photograph("astronaut"))


def inside(box, outer):
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return outer[0] <= x <= outer[0] + outer[2] and outer[1] <= y <= outer[1] + outer[3]


def test_the_astronaut_has_a_face_where_it_is(detector):
    (face, *others) = detector.find(astronaut())
    assert not others and inside(face.box, HEAD) and 60 <= face.box[2] <= 160


@pytest.mark.parametrize("name", ["cat", "coffee", "rocket", "motorcycle", "galaxies", "temple", "flower"])
def test_photographs_without_faces_have_none(name):
    assert LbpFaces().find(np.asarray(photograph(name))) == []


def test_the_default_is_sure_on_small_faces_and_on_what_is_none():
    found = [(bool(LbpFaces().find(np.asarray(picture))), is_face) for picture, is_face in faces.small_crops()]
    assert sum(hit for hit, is_face in found if is_face) >= 80
    assert sum(hit for hit, is_face in found if not is_face) <= 3


def test_boxes_are_in_pixels_of_the_picture_whatever_its_size(detector):
    large = np.asarray(photograph("astronaut").resize((1536, 1536)))
    (face, *_) = detector.find(large)
    assert inside([side / 3 for side in face.box], HEAD)
    x, y, width, height = face.box
    assert x >= 0 and y >= 0 and x + width <= 1536 and y + height <= 1536


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (24, 24), (25, 400), (2000, 2)])
def test_tiny_and_thin_pictures_have_no_faces_and_no_errors(detector, shape):
    assert detector.find(np.full((*shape, 3), 127, dtype=np.uint8)) == []


def test_a_detector_travels_to_other_processes(detector):
    again = pickle.loads(pickle.dumps(detector.__class__()))
    assert again.name == detector.name and again.find(astronaut()) == detector.find(astronaut())


def test_names_tell_settings_apart():
    assert len({LbpFaces().name, LbpFaces(neighbours=3).name, LbpFaces(max_side=640).name, HaarFaces().name}) == 4


def test_the_default_needs_no_file_and_a_file_means_yunet(tmp_path):
    assert face_detector() == LbpFaces()
    with pytest.raises(ValueError, match="does not exist; expected a YuNet"):
        face_detector(path=str(tmp_path / "missing.onnx"))
    with pytest.raises(ValueError, match="only there"):
        face_detector("lbp", path="some.onnx")
    with pytest.raises(ValueError, match="with yunet"):
        face_detector("yunet")
    with pytest.raises(ValueError, match="expected lbp, haar or yunet"):
        face_detector("eyes")


def test_a_file_that_is_no_network_is_named(tmp_path):
    pytest.importorskip("cv2")
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.onnx.*Expected a YuNet"):
        face_detector(path=str(path))


@pytest.mark.parametrize("name", ["lbp", "haar"])
def test_a_missing_package_names_the_extra(name, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"\.\[faces\]"):
        face_detector(name)


def test_a_face_found_at_two_sizes_counts_once():
    small, large = (face_detectors.Face(box=(40, 40, side, side), score=1.0) for side in (20, 40))
    beside = face_detectors.Face(box=(100, 40, 20, 20), score=1.0)
    assert face_detectors._apart([large, small, beside]) == [large, beside]


def test_yunet_names_itself_by_its_file(tmp_path):
    names = set()
    for content in (b"one", b"two"):
        (tmp_path / "net.onnx").write_bytes(content)
        names.add(YuNetFaces(path=str(tmp_path / "net.onnx")).name)
    assert len(names) == 2

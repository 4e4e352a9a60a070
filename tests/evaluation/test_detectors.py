"""Detectors of transformers with random weights: the plumbing from a folder to detections under GenEval's names."""

import numpy as np
import pytest
from transformers import LlamaConfig

from tests.evaluation.tiny_detectors import tiny_detr, tiny_mask2former, tiny_owlv2
from tokenflow.evaluation.detectors import CLASSES, Detector, load_detector
from tokenflow.evaluation.geneval_score import MAX_OBJECTS, judge
from tokenflow.evaluation.measure import NotMeasured


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def load(make, folder) -> Detector:
    detector = load_detector(str(make(folder)))
    assert isinstance(detector, Detector)
    detector.least = 0.0
    return detector


def test_a_segmenter_gives_masks_with_the_boxes_around_them(tmp_path, picture):
    detector = load(tiny_mask2former, tmp_path)
    found = detector(picture)
    assert found and "mask2former" in detector.name
    assert {item.label for item in found} <= {"person", "computer mouse", "dog"}
    for item in found:
        rows, columns = np.nonzero(item.mask)
        assert item.mask.shape == (48, 48) and item.mask.dtype == bool
        assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert 0 <= item.confidence <= 1


def test_a_detector_of_boxes_gives_boxes(tmp_path, picture):
    found = load(tiny_detr, tmp_path)(picture)
    assert len(found) == 5 and all(item.mask is None and len(item.box) == 4 for item in found)
    assert {item.label for item in found} <= {"person", "computer mouse", "dog"}


def test_a_detector_by_text_is_asked_for_genevals_classes(tmp_path, picture):
    detector = load(tiny_owlv2, tmp_path)
    detector.classes = ("dog", "person")
    found = detector(picture)
    assert found and {item.label for item in found} <= {"dog", "person"}


def test_nothing_found_is_an_empty_list_and_a_wrong_picture(tmp_path, picture):
    detector = load(tiny_mask2former, tmp_path)
    detector.least = 1.1
    assert detector(picture) == []
    metadata = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    assert not judge(metadata, detector(picture), name_colours=lambda _: []).correct


def test_what_cannot_be_had_says_why_and_what_to_give(tmp_path):
    for source in (None, str(tmp_path / "nowhere")):
        absent = load_detector(source)
        assert isinstance(absent, NotMeasured) and "--detector.model" in absent.reason
    tiny_detr(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    absent = load_detector(str(tmp_path))
    assert isinstance(absent, NotMeasured) and str(tmp_path) in absent.reason


def test_a_model_that_is_no_detector_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a llama model; expected a detector"):
        load_detector(str(tmp_path))


def test_classes_are_cocos_eighty():
    assert len(CLASSES) == len(set(CLASSES)) == 80 and MAX_OBJECTS == 16

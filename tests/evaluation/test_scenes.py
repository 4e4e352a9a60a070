import numpy as np
import pytest

from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.evaluation.scenes import verify_scenes


def test_true_pictures_read_back_and_blank_ones_do_not():
    scenes = [SceneSampler(seed=0, split="seen")[index] for index in range(6)]
    records = [{"scene": scene.to_json()} for scene in scenes]
    pictures = [draw(scene, 32) for scene in scenes]
    assert verify_scenes(pictures, records) == 1.0
    pictures[1] = np.full((32, 32, 3), 128, dtype=np.uint8)
    assert verify_scenes(pictures, records) == pytest.approx(5 / 6)


def test_a_record_without_a_scene_is_named():
    with pytest.raises(ValueError, match="record 0"):
        verify_scenes([np.zeros((32, 32, 3), np.uint8)], [None])

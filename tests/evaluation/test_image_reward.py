"""ImageReward: absent without the package or weights, and called as the package wants it."""

import sys
import types

import numpy as np
import pytest

from tokenflow.evaluation.image_reward import load_image_reward
from tokenflow.evaluation.measure import NotMeasured


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    absent = load_image_reward()
    assert isinstance(absent, NotMeasured) and "pip install image-reward" in absent.reason


@pytest.fixture
def package(monkeypatch):
    """A stand-in with the package's two functions: brightness is the reward."""
    module = types.ModuleType("ImageReward")

    class Model:
        def score(self, prompt, image):
            return float(np.asarray(image).mean()) + len(prompt)

    def load(name, *, device):
        if name == "ImageReward-v1.0":
            raise OSError("no network\nat all")
        return Model()

    module.load = load
    monkeypatch.setitem(sys.modules, "ImageReward", module)
    return module


def test_without_weights_it_says_why(package, tmp_path):
    absent = load_image_reward()
    assert isinstance(absent, NotMeasured) and "(no network)" in absent.reason
    absent = load_image_reward(str(tmp_path / "none.pt"))
    assert isinstance(absent, NotMeasured) and "none.pt" in absent.reason


def test_a_picture_gets_a_number(package, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    reward = load_image_reward(str(tmp_path / "weights.pt"))
    assert reward("abc", np.full((4, 4, 3), 10, np.uint8)) == 13.0

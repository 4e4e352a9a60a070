import importlib.util

import pytest
from PIL import Image

from tokenflow.data import DataConfig, Loader, SourceConfig
from tokenflow.data.photographs import HELD_OUT_PHOTOGRAPHS, export_photographs

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def test_photographs_become_a_folder_that_trains(tmp_path):
    train = export_photographs(tmp_path / "train", split="train", image_size=64)
    held_out = export_photographs(tmp_path / "heldout", split="heldout", image_size=64)
    assert len(train) >= 48 and len(held_out) >= 24
    assert {path.stem.split("-")[1] for path in held_out} == set(HELD_OUT_PHOTOGRAPHS)
    assert not {path.name for path in train} & {path.name for path in held_out}
    assert all(Image.open(path).size == (64, 64) for path in train)
    settings = DataConfig(sources=(SourceConfig(path=str(tmp_path / "train")),), image_size=32)
    batch, _ = next(Loader(settings, global_batch_size=16, micro_batch_size=16, seed=0))
    assert batch["images"].std() > 0.2 and all(caption.startswith("a ") for caption in batch["captions"])


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.\[demo\]"):
        export_photographs(tmp_path)

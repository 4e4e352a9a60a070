"""The probe of frozen features reads what is there, and nothing where nothing is."""

import torch

from benchmarks.semantics import GRID, Scenes, probe, read, scenes
from tokenflow.data.shapes import SHAPES
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.teachers import SmallClipConfig, build_open_clip, save_teacher, teacher_tower


def test_labels_are_the_shapes_that_cover_the_cells():
    found = scenes("train", 20)
    assert found.images.shape == (20, 3, 32, 32) and found.labels.shape == (20, GRID, GRID)
    assert set(found.labels.unique().tolist()) <= set(range(1 + len(SHAPES)))
    assert (found.labels > 0).flatten(1).any(1).all() and (found.labels == 0).flatten(1).any(1).all()


def test_the_probe_names_what_the_features_say_and_guesses_otherwise():
    generator = torch.Generator().manual_seed(0)
    found = {}
    for split, count in (("train", 64), ("seen", 32), ("heldout", 32)):
        labels = torch.randint(1 + len(SHAPES), (count, GRID, GRID), generator=generator)
        found[split] = Scenes(torch.zeros(count, 3, 32, 32), labels)
    telling = {split: torch.nn.functional.one_hot(part.labels).movedim(-1, 1).float() for split, part in found.items()}
    silent = {split: torch.randn(part.shape, generator=generator) for split, part in telling.items()}
    assert min(probe(telling, found, steps=60).values()) > 0.95
    assert min(probe(telling, found, steps=60, neighbourhood=1, whiten=True).values()) > 0.95
    assert max(probe(silent, found, steps=60).values()) < 0.4


def test_whitening_makes_a_quiet_direction_heard():
    generator = torch.Generator().manual_seed(0)
    found, quiet = {}, {}
    for split, count in (("train", 64), ("seen", 32), ("heldout", 32)):
        labels = torch.randint(2, (count, GRID, GRID), generator=generator)
        loud = torch.randn((count, 1, GRID, GRID), generator=generator)
        found[split] = Scenes(torch.zeros(count, 3, 32, 32), labels)
        quiet[split] = torch.cat([10 * loud, 10 * loud + (labels[:, None] - 0.5)], dim=1)
    options = {"steps": 60, "neighbourhood": 1}
    whitened = probe(quiet, found, whiten=True, **options)
    assert min(whitened.values()) > max(probe(quiet, found, **options).values()) + 0.2


def test_features_of_teacher_and_tokenizer_lie_on_the_grid(tmp_path):
    teacher = teacher_tower(save_teacher(build_open_clip(SmallClipConfig(vocabulary_size=50)), tmp_path / "teacher"))
    tokenizer = TokenFlowTokenizer(preset("tokenflow-nano")).eval()
    found = read(scenes("seen", 3).images, teacher, tokenizer)
    assert {name: tuple(part.shape) for name, part in found.items()} == {
        "pixels": (3, 48, 8, 8),
        "teacher": (3, 64, 8, 8),
        "codes": (3, 24, 8, 8),
        "semantic half": (3, 16, 8, 8),
    }

"""The doctor on multimodal folders: what is sound is ok, what is broken on purpose is found."""

import pytest
import torch

from tests.evaluation.tiny_image_to_text import tiny_folder
from tokenflow import ImageToText
from tokenflow.cli import main
from tokenflow.doctor import models
from tokenflow.doctor.seeing import ANSWER, QUESTIONS, compare_with_teacher_forcing
from tokenflow.language.transformer import CausalTransformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = tmp_path_factory.mktemp("seeing")
    tiny_folder(parent)
    return parent / "model"


def test_a_sound_model_answers_what_it_predicts(folder, capsys):
    clear, different = compare_with_teacher_forcing(ImageToText.from_pretrained(folder))
    assert different == 0 and clear > 0.8 * len(QUESTIONS) * ANSWER
    assert [finding.status for finding in models.model(folder)] == ["ok", "ok"]
    assert main(["doctor", "--model", str(folder)]) == 0
    assert "equal the teacher-forced argmax" in " ".join(capsys.readouterr().out.split())


def test_answers_that_are_computed_otherwise_are_found(folder, monkeypatch):
    step = CausalTransformer.step

    def shifted(self, inputs, *, cache, positions):
        return step(self, inputs, cache=cache, positions=positions + 3)

    monkeypatch.setattr(CausalTransformer, "step", shifted)
    *_, last = models.model(folder)
    assert last.status == "broken" and "positions, padding or the cache" in last.remedy


def test_weights_that_are_not_finite_and_a_folder_without_its_parts_are_found(folder, tmp_path):
    model = ImageToText.from_pretrained(folder)
    with torch.no_grad():
        model.model.head.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    *_, last = models.model(tmp_path / "nan")
    assert (last.name, last.status) == ("weights", "broken")
    (tmp_path / "nan" / "model.safetensors").unlink()
    (only,) = models.model(tmp_path / "nan")
    assert only.status == "broken" and "model.safetensors" in only.detail

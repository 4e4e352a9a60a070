"""The doctor on text-to-image folders: what is sound is ok, what is broken on purpose is found."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.tiny_text_to_image import tiny_folder, tiny_model
from tokenflow import TextToImage, TokenFlowTokenizer
from tokenflow.cli import main
from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.doctor import models
from tokenflow.doctor.agreement import compare_with_teacher_forcing, round_trip_of_codes
from tokenflow.doctor.models import OverfitChoice
from tokenflow.doctor.overfit import overfit
from tokenflow.generation.model import Generator
from tokenflow.tokenizer.presets import preset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder):
    return TextToImage.from_pretrained(folder)


@pytest.fixture(scope="module")
def scene():
    return Image.fromarray(draw(SceneSampler(3, "seen").scene(0, kind="pair"), 32))


def test_a_sound_model_samples_what_it_predicts(model):
    for guidance_scale in (0.0, 7.5):
        result = compare_with_teacher_forcing(model, guidance_scale=guidance_scale)
        assert result.different == 0 and result.first_scale is None
        assert result.compared > 0.9 * 3 * 85 and result.compared + result.tied == 3 * 85


def test_sampling_that_computes_something_else_is_found_with_its_scale(model, monkeypatch):
    embed = Generator.embed_features

    def shifted(self, features, *, first=0):
        # As a sampler does that takes each scale's position from its own start; the whole sequence begins at 0 rightly.
        return embed(self, features, first=0 if features.shape[1] < 84 else first)

    monkeypatch.setattr(Generator, "embed_features", shifted)
    result = compare_with_teacher_forcing(model, guidance_scale=0.0)
    assert result.different > 0 and result.first_scale == 4


def test_the_round_trip_counts_equal_codes_at_each_scale(model):
    model.tokenizer.encode = lambda images: codes
    codes = model.generate_codes(["two green triangles"] * 3, guidance_scale=0.0)
    generated = model.generate_codes
    model.generate_codes = lambda prompts, **options: codes
    assert round_trip_of_codes(model).overall == 1
    other = codes.clone()
    other[:, 0] = (other[:, 0] + 1) % 256
    model.tokenizer.encode = lambda images: other
    trip = round_trip_of_codes(model)
    assert trip.scales == {1: 0.0, 2: 1.0, 4: 1.0, 8: 1.0} and trip.overall == pytest.approx(84 / 85)
    model.generate_codes = generated


def test_a_picture_learned_by_heart_comes_back_and_the_model_stays_as_it_is(tmp_path, scene):
    model = tiny_model(tmp_path)
    before = {name: value.clone() for name, value in model.generator.state_dict().items()}
    image = torch.from_numpy(np.array(scene)).permute(2, 0, 1)[None].float() / 127.5 - 1
    result = overfit(model, image, prompt="a picture", steps=300)
    assert result.accuracy == result.equal == 1 and result.psnr == 100 and result.last_loss < result.first_loss
    assert all(torch.equal(value, before[name]) for name, value in model.generator.state_dict().items())


def test_all_checks_of_a_folder_are_printed_and_ok(folder, scene):
    found = list(models.model(folder, overfit_on=OverfitChoice(picture=scene, steps=300)))
    assert [finding.status for finding in found] == ["ok", "ok", "ok", "note", "ok"]
    assert "cached greedy codes equal the teacher-forced argmax" in found[1].detail
    assert "it comes back" in found[-1].detail


def test_too_few_steps_are_a_failure_with_its_cause(folder, scene):
    *_, last = models.model(folder, overfit_on=OverfitChoice(picture=scene, steps=1))
    assert last.status == "broken" and "--overfit_steps" in last.remedy


@pytest.mark.parametrize(
    ("part", "words"), [("pixel_decoder", "every picture is constant"), ("encoders", "all pictures are the same")]
)
def test_a_tokenizer_whose_pictures_are_blank_or_alike_is_broken(tmp_path, part, words):
    torch.manual_seed(0)
    tokenizer = TokenFlowTokenizer(preset("tokenflow-nano"))
    assert [finding.status for finding in models.tokenizer(tokenizer.save_pretrained(tmp_path))] == ["ok", "ok"]
    with torch.no_grad():
        for weight in getattr(tokenizer, part).parameters():
            weight.zero_()
    (_, trip) = models.tokenizer(tokenizer.save_pretrained(tmp_path))
    assert trip.status == "broken" and words in trip.detail


def test_weights_that_are_not_finite_are_found(tmp_path):
    model = tiny_model(tmp_path)
    with torch.no_grad():
        model.generator.projector[0].weight[0, 0] = torch.nan
    folder = model.save_pretrained(tmp_path / "model")
    found = list(models.model(folder))
    assert [finding.status for finding in found] == ["ok", "broken"] and "NaN" in found[1].detail


def test_a_folder_with_another_tokenizer_is_broken_and_names_both(tmp_path):
    folder = tiny_folder(tmp_path)
    config = dataclasses.replace(preset("tokenflow-nano"), codebook_size=128)
    TokenFlowTokenizer(config).save_pretrained(folder / "image_tokenizer")
    (finding,) = models.model(folder)
    assert finding.status == "broken" and "1024" in finding.detail and "128" in finding.detail


def test_a_model_too_large_for_the_memory_is_not_tried(folder, scene, monkeypatch):
    monkeypatch.setattr(models, "available_memory", lambda device: 1000)
    *_, last = models.model(folder, overfit_on=OverfitChoice(picture=scene))
    assert last.status == "note" and "not tried" in last.detail


def test_the_command_complains_in_one_line(folder, tmp_path, capsys):
    TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path / "tokenizer")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    cases = (
        (["--overfit", tmp_path / "a.png"], "give --model DIR"),
        (["--model", folder, "--overfit", tmp_path / "none.png"], "none.png"),
        (["--model", tmp_path / "tokenizer", "--overfit", tmp_path / "a.png"], "is for a text-to-image folder"),
        (["--model", folder, "--overfit", tmp_path / "a.png", "--overfit_steps", 0], "expected at least one step"),
    )
    for arguments, words in cases:
        assert main(["doctor", *map(str, arguments)]) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("error: ") and complaint.count("\n") == 1 and words in complaint

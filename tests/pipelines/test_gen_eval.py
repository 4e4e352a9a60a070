"""Evaluation of text to image for real: one and two processes, official folders, wrong input named."""

import json

import pytest

from tests.evaluation.tiny_detectors import tiny_mask2former
from tests.tasks.tiny_text_to_image import tiny_folder
from tests.train.launching import refused, run

EVALUATE = "pipelines.gen_eval"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    path = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    lines = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": f"a photo of a {name}"}
        for name in ("dog", "cow", "bench")
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def shapes(model, output):
    return [
        *("--recipe", "nano", "--model", model, "--output", output, "--shapes.prompts_per_kind", 2),
        *("--shapes.steps", "[single-step]", "--shapes.guidance_scales", "[0]", "--shapes.gallery_images", 1),
        *("--shapes.batch_size", 8),
    ]


def test_two_ranks_give_the_numbers_of_one(model, tmp_path):
    printed = run(*shapes(model, tmp_path / "one"), module=EVALUATE)
    run(*shapes(model, tmp_path / "two"), world_size=2, module=EVALUATE)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] and one["table"] == two["table"]
    assert one["protocol"]["sampling"]["guidance_scale"] == 1.0
    assert "color_attribution" in printed and "single-step" in printed and "multi_step_gain" in printed


@pytest.mark.slow
def test_geneval_on_two_ranks_is_painted_scored_and_set_beside_the_paper(model, metadata, tmp_path):
    detector = tiny_mask2former(tmp_path / "detector")
    options = [
        *("--recipe", "geneval", "--model", model, "--benchmark.prompts", metadata, "--precision", "fp32"),
        *("--benchmark.images_per_prompt", 2, "--detector.model", detector, "--detector.colours", "palette"),
        *("--sampling.steps", "greedy"),
    ]
    printed = run(*options, "--output", tmp_path / "out", world_size=2, module=EVALUATE)
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["00000", "00001", "00002"]
    assert len(list((tmp_path / "out").glob("images/*/samples/*.png"))) == 6
    assert len(list((tmp_path / "out" / "scores").iterdir())) == 3
    assert "image_reward is not measured" in printed and "NOT the official detector" in printed
    assert "Show-o" in printed and "0.55" in printed


def test_wrong_input_is_one_line(model, tmp_path):
    for options, words in ((("--model", "nowhere"), "nowhere"), (("--init_from", "x"), "an evaluation trains nothing")):
        assert words in refused(*shapes(model, tmp_path / "out"), *options, module=EVALUATE)

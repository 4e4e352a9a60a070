"""Evaluations of a text-to-image folder: built-in world, GenEval, DPG-Bench; finished, killed, refused, replaced."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_prompt_rewriting import FINE, Server
from tests.evaluation.tiny_detectors import tiny_mask2former
from tests.tasks.tiny_text_to_image import tiny_folder
from tokenflow.evaluation.compositional import CompositionalPlan
from tokenflow.evaluation.painting import Sampling
from tokenflow.evaluation.prompt_rewriting import RewritingConfig
from tokenflow.tasks import generation_evaluation
from tokenflow.tasks.generation_evaluation import evaluate, evaluate_into
from tokenflow.tasks.generation_evaluation_recipe import (
    BenchmarkChoice,
    DetectorChoice,
    GenerationEvaluationRecipe,
    RewardChoice,
)
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset

PLAN = CompositionalPlan(
    prompts_per_kind=2, steps=("single-step",), guidance_scales=(2.0,), gallery_images=1, batch_size=16
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    path = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    lines = [
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
        {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def shapes(model, **fields):
    return GenerationEvaluationRecipe(
        model=str(model), **{"shapes": PLAN, "sampling": Sampling(guidance_scale=2.0), **fields}
    )


def geneval(model, metadata, **fields):
    defaults = {
        "benchmark": BenchmarkChoice(prompts=str(metadata), images_per_prompt=2, batch_size=2),
        "detector": DetectorChoice(model=None),
        "image_reward": RewardChoice(use="no"),
        "sampling": Sampling(steps="greedy", guidance_scale=0.0),
    }
    return GenerationEvaluationRecipe(model=str(model), of="geneval", **{**defaults, **fields})


def test_the_built_in_world_is_judged_in_memory_and_into_a_folder_alike(model, tmp_path):
    result = evaluate(shapes(model))
    content = evaluate_into(shapes(model), tmp_path)
    assert content["metrics"] == result.metrics
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["metrics"] == result.metrics and saved["table"] == result.rows()
    assert {"seen", "heldout", "single_step", "multi_step", "seen_error", "multi_step_gain"} <= set(result.metrics)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "result.json", "result.md"]
    assert "exact" in saved["protocol"]["verifier"]
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape[0] > 10 * 64


def test_a_finished_evaluation_is_not_taken_again_and_another_is_refused(model, tmp_path):
    evaluate_into(shapes(model), tmp_path)
    written = (tmp_path / "result.json").stat().st_mtime_ns
    moved = shutil.copytree(model, tmp_path / "moved")
    assert evaluate_into(shapes(moved), tmp_path)["metrics"]
    assert (tmp_path / "result.json").stat().st_mtime_ns == written
    other = dataclasses.replace(shapes(model), sampling=Sampling(guidance_scale=2.0, seed=5))
    with pytest.raises(ValueError, match=r"holds another evaluation \(sampling was .*'seed': 0.*'seed': 5"):
        evaluate_into(other, tmp_path)
    evaluate_into(other, tmp_path, resume="none")
    assert (tmp_path / "result.json").stat().st_mtime_ns != written


def test_a_killed_evaluation_goes_on_after_the_last_judged_setting(model, tmp_path, monkeypatch):
    whole = evaluate_into(shapes(model), tmp_path / "whole")
    judged = []

    def stop_at_second(*arguments, **keywords):
        judged.append(arguments[2])
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(*arguments, **keywords)

    judge = generation_evaluation.judge
    monkeypatch.setattr(generation_evaluation, "judge", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate_into(shapes(model), tmp_path / "killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    content = evaluate_into(shapes(model), tmp_path / "killed")
    assert content["metrics"] == whole["metrics"] and content["table"] == whole["table"]
    # The first setting came from its file.
    assert [setting.steps for setting in judged] == ["three-step", "single-step", "single-step"]
    assert not (tmp_path / "killed" / "partial").exists()


def test_geneval_without_a_detector_writes_pictures_and_says_what_is_missing(model, metadata, tmp_path):
    content = evaluate_into(geneval(model, metadata), tmp_path)
    assert content["metrics"] == {"overall": "not measured", "image_reward": "not measured"}
    assert "--detector.model" in content["protocol"]["not_measured"]["overall"]
    assert "evaluate_images.py" in content["text"] and "TokenFlow" in content["text"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["00000", "00001"]
    assert "not measured" in (tmp_path / "result.md").read_text()


def test_geneval_is_scored_by_an_open_detector_once_there_is_one(model, metadata, tmp_path):
    out = tmp_path / "out"
    evaluate_into(geneval(model, metadata), out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("images/*/samples/*.png")}
    detector = DetectorChoice(model=str(tiny_mask2former(tmp_path / "detector")), colours="palette")
    recipe = geneval(model, metadata, detector=detector)
    content = evaluate_into(recipe, out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("images/*/samples/*.png")} == times
    assert {"overall", "single_object", "colors", "overall_error"} <= set(content["metrics"])
    assert 0 <= content["metrics"]["overall"] <= 1
    assert "NOT the official" in content["text"] and "mask2former" in content["text"]
    scores = json.loads((out / "scores" / "00001.json").read_text())
    assert scores["tag"] == "colors" and [set(p) for p in scores["pictures"]] == [{"correct", "reasons", "objects"}] * 2
    before = (out / "scores" / "00001.json").stat().st_mtime_ns
    evaluate_into(recipe, out)
    assert (out / "scores" / "00001.json").stat().st_mtime_ns == before


def test_pictures_of_another_model_or_of_nobody_are_not_mixed_in(model, metadata, tmp_path):
    evaluate_into(geneval(model, metadata), tmp_path / "out")
    with pytest.raises(ValueError, match="holds another evaluation"):
        evaluate_into(geneval(model, metadata, sampling=Sampling(seed=3)), tmp_path / "out")
    stranger = tmp_path / "stranger" / "images" / "00000"
    stranger.mkdir(parents=True)
    with pytest.raises(ValueError, match="holds pictures, and nothing says of which model"):
        evaluate_into(geneval(model, metadata), tmp_path / "stranger")
    evaluate_into(geneval(model, metadata), tmp_path / "stranger", resume="none")
    assert (stranger / "metadata.jsonl").is_file()


def test_rewritten_prompts_are_painted_and_kept_beside_the_originals(model, metadata, tmp_path):
    with Server(FINE) as server:
        rewriting = RewritingConfig(by="endpoint", url=server.url, model="m", pause_seconds=0.0)
        content = evaluate_into(geneval(model, metadata, rewriting=rewriting), tmp_path / "rewritten")
        assert len(server.requests) == 2
    evaluate_into(geneval(model, metadata), tmp_path / "plain")
    rows = [json.loads(line) for line in (tmp_path / "rewritten" / "prompts.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"] == "a photo of a dog" and rows[0]["rewritten"] == "A vivid a photo of a dog"
    assert content["protocol"]["rewriting"]["model"] == "m"
    pictures = [(tmp_path / name / "images/00000/samples/00000.png").read_bytes() for name in ("rewritten", "plain")]
    assert pictures[0] != pictures[1]
    stored = json.loads((tmp_path / "rewritten/images/00000/metadata.jsonl").read_text())
    assert stored["prompt"] == "a photo of a dog"


def test_a_rewriter_that_fails_ends_it_before_anything_is_painted(model, metadata, tmp_path):
    with Server((500, "no", 0)) as server:
        rewriting = RewritingConfig(by="endpoint", url=server.url, model="m", pause_seconds=0.0, attempts=2)
        with pytest.raises(ValueError, match="in 2 attempts"):
            evaluate_into(geneval(model, metadata, rewriting=rewriting), tmp_path)
    assert not (tmp_path / "images").exists()


def test_dpg_writes_two_by_two_and_names_its_own_evaluator(model, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "7.txt").write_text("Three red stars above a very long table. " * 12)
    recipe = dataclasses.replace(
        geneval(model, None, benchmark=BenchmarkChoice(prompts=str(tmp_path / "prompts"))), of="dpg"
    )
    content = evaluate_into(recipe, tmp_path / "out")
    assert Image.open(tmp_path / "out" / "images" / "7.png").size == (64, 64)
    assert content["metrics"]["overall"] == "not measured"
    assert f"dist_eval.sh {tmp_path / 'out' / 'images'} 32" in content["text"]


def test_a_tokenizer_of_another_size_is_refused_with_both_values(model, tmp_path):
    other = TokenFlowTokenizer(dataclasses.replace(preset("tokenflow-nano"), codebook_size=128))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"codebook_size 1024 .*other.* has 128"):
        evaluate(shapes(model, tokenizer=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"of": "geneval"}, "give --benchmark.prompts GenEval's evaluation_metadata.jsonl"),
        ({"of": "dpg", "benchmark": BenchmarkChoice(prompts="x", images_per_prompt=3)}, "DPG-Bench takes 4"),
        ({"rewriting": RewritingConfig(by="local", model="m")}, "rewriting is for geneval and dpg"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GenerationEvaluationRecipe(model="m", **fields)


def test_benchmarks_need_a_folder_and_other_words_for_resume_are_refused(model, metadata, tmp_path):
    with pytest.raises(ValueError, match="expected shapes here"):
        evaluate(geneval(model, metadata))
    with pytest.raises(ValueError, match=r"takes auto .* or none"):
        evaluate_into(shapes(model), tmp_path, resume="elsewhere")

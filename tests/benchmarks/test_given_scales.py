"""Given scales stay as they are given, the model paints the others, and a row says what came of it."""

import argparse

import pytest
import torch

from benchmarks.given_scales import claims, encoded, finished, measure
from tests.tasks.tiny_text_to_image import tiny_folder, tiny_model
from tokenflow.data.captions import PROMPT_KINDS
from tokenflow.generation.options import SamplingConfig

CONFIG = SamplingConfig(guidance_scale=1.0, top_k=(256, 1), top_p=(0.9, 0.0))


def test_what_is_given_stays_and_the_rest_is_sampled(tmp_path):
    model = tiny_model(tmp_path)
    asked = claims(1, seed=3)
    assert [claim.kind for _, claim in asked] == list(PROMPT_KINDS)
    codes, prompts = encoded(model, [scene for scene, _ in asked]), [claim.text for _, claim in asked]
    for given, kept in ((0, 0), (2, 5), (4, 85)):
        painted = finished(model, prompts, codes, given=given, config=CONFIG)
        assert torch.equal(painted[:, :kept], codes[:, :kept])
        assert kept == 85 or not torch.equal(painted[:, kept:], codes[:, kept:])
    sampled = model.generate_codes(prompts, guidance_scale=1.0, top_k=CONFIG.top_k, top_p=CONFIG.top_p)
    assert torch.equal(finished(model, prompts, codes, given=0, config=CONFIG), sampled)


def test_a_row_a_number_of_scales_and_the_cost_of_the_next_one(tmp_path):
    folder = tiny_folder(tmp_path)
    options = argparse.Namespace(model=folder, prompts=2, seed=2, guidance_scale=1.0)
    rows = list(measure(options))
    assert [row["given"] for row in rows] == [0, 1, 2, 3]
    for row, codes in zip(rows, (1, 4, 16, 64), strict=True):
        assert all(0 <= row[kind] <= 1 for kind in (*PROMPT_KINDS, "all"))
        assert row["all"] == pytest.approx(sum(row[kind] for kind in PROMPT_KINDS) / 6, abs=1e-3)
        # Random weights: about the logarithm of 1024 codes each.
        assert row["side"] / codes == pytest.approx(6.9, abs=1.5)

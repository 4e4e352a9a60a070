"""Stage 2 for real: the decoder grows and trains on one and two processes, and no code changes."""

import pytest
import torch

from tests.pipelines.world import CONFIGS, DECODER, decoder_options
from tests.train.launching import curve, refused, run, stop
from tokenflow import TokenFlowTokenizer
from tokenflow.train import read_rows

TERMS = ("loss", "reconstruction", "perceptual")
GAN_TERMS = ("adversarial", "discriminator")


@pytest.fixture(scope="module")
def finished(world, barely_trained, tmp_path_factory):
    """One unbroken run on one process, by accumulation, ZeRO off."""
    output = tmp_path_factory.mktemp("one") / "run"
    run(*decoder_options(world, barely_trained, output), module=DECODER)
    return output


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_codes_features_and_semantics_are_the_same_bits_before_and_after(barely_trained, finished):
    before = TokenFlowTokenizer.from_pretrained(barely_trained)
    after = TokenFlowTokenizer.from_pretrained(finished / "model")
    codes = before.encode(images())
    assert torch.equal(after.encode(images()), codes)
    assert torch.equal(after.features(codes), before.features(codes))
    assert torch.equal(after.decode_semantic(codes), before.decode_semantic(codes))
    weights = after.state_dict()
    for name, value in before.state_dict().items():
        if not name.startswith("pixel_decoder."):
            assert torch.equal(weights[name], value), name


def test_only_the_decoder_is_larger_and_it_has_learned(barely_trained, finished):
    before = TokenFlowTokenizer.from_pretrained(barely_trained)
    after = TokenFlowTokenizer.from_pretrained(finished / "model")
    small, large = (tokenizer.config.pixel_decoder.convolutional for tokenizer in (before, after))
    assert (large.channels, large.blocks) == (2 * small.channels, 2 * small.blocks)
    assert after.config.branches == before.config.branches
    assert after.teacher == before.teacher
    codes = before.encode(images())
    assert not torch.equal(after.decode(codes), before.decode(codes))


def test_the_run_starts_where_the_base_decoder_ends_and_reports_both(finished):
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert len({row["psnr_base"] for row in evaluations}) == 1
    for row in evaluations:
        assert row["psnr_gain"] == pytest.approx(row["psnr"] - row["psnr_base"])
    assert (finished / "images" / "reconstructions_00000006.png").is_file()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_reach_the_curve_of_one(world, barely_trained, finished, tmp_path, stage):
    options = decoder_options(world, barely_trained, tmp_path / "two")
    config = CONFIGS / f"zero{stage}.json"
    run(*options, "--ds_config", config, "--tracking.mlflow", "false", world_size=2, module=DECODER)
    for term in TERMS:
        assert curve(tmp_path / "two", term) == pytest.approx(curve(finished, term), rel=2e-4), term
    for term in GAN_TERMS:
        first, second = (
            [row[term] for row in read_rows(folder / "metrics.jsonl") if term in row]
            for folder in (finished, tmp_path / "two")
        )
        assert len(first) >= 4
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5), term
    weights = TokenFlowTokenizer.from_pretrained(tmp_path / "two" / "model").state_dict()
    for name, value in TokenFlowTokenizer.from_pretrained(finished / "model").state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-3)


def test_a_stopped_run_ends_like_the_unbroken_one(world, barely_trained, finished, tmp_path):
    options = [*decoder_options(world, barely_trained, tmp_path / "run"), "--tracking.mlflow", "false"]
    stop(*options, folder=tmp_path / "run", module=DECODER)
    run(*options, module=DECODER)
    for term in TERMS:
        assert curve(tmp_path / "run", term) == curve(finished, term)


def test_a_decoder_of_the_same_size_is_trained_further(world, barely_trained, tmp_path):
    options = decoder_options(world, barely_trained, tmp_path / "run", steps=2)
    same_size = ("--decoder.channel_factor", 1, "--decoder.block_factor", 1)
    run(*options, *same_size, "--tracking.mlflow", "false", module=DECODER)
    before = TokenFlowTokenizer.from_pretrained(barely_trained)
    after = TokenFlowTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert after.config == before.config
    assert torch.equal(after.encode(images()), before.encode(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--data.image_size", 64], "reads 32 pixels. Make them equal"),
        (["--init_from", "weights"], "give its folder as --tokenizer"),
        (["--decoder.channel_factor", 0], "decoder.channel_factor is 0; expected at least 1"),
        (["--train.precision", "bf16"], "Set train.precision bf16_autocast"),
        (["--loss.perceptual", "lpips", "--loss.perceptual_checkpoint", "no.pth"], "no.pth"),
    ],
)
def test_a_wrong_choice_ends_with_one_line_before_training(world, barely_trained, tmp_path, options, message):
    given = decoder_options(world, barely_trained, tmp_path / "run", steps=2)
    assert message in refused(*given, *options, module=DECODER)
    assert not (tmp_path / "run" / "checkpoints").exists()

"""Codes of several scales: the residual loop, dropped scales, prefixes, the generator's inputs."""

import collections

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.tiny_quantizer import make
from tokenflow.tokenizer.quantizer import DROPPED, draw_dropped_scale


@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    scales=st.sets(st.integers(1, 7), min_size=1, max_size=4).map(sorted),
    widths=st.lists(st.integers(2, 9), min_size=1, max_size=3),
)
def test_shapes_and_round_trip_for_any_scales_and_codebooks(batch, scales, widths):
    quantizer = make(codebook_size=32, widths=tuple(widths), scales=tuple(scales))
    side, channels, length = scales[-1], sum(widths), sum(s * s for s in scales)
    with torch.no_grad():
        output = quantizer(torch.randn(batch, channels, side, side))
        assert output.indices.shape == (batch, length) == (batch, quantizer.num_codes)
        torch.testing.assert_close(quantizer.decode_indices(output.indices), output.quantized, atol=1e-5, rtol=1e-5)
        assert len(quantizer.scale_features(output.indices)) == len(scales)
        assert quantizer.scale_inputs(output.indices).shape == (batch, length - scales[0] ** 2, channels)


def test_residual_loop_matches_its_definition():
    quantizer = make(scales=(1, 3, 5))
    features = torch.randn(2, 10, 5, 5)
    residual, total, losses = features, 0, []
    for scale in (1, 3, 5):
        output = quantizer.quantizer(F.interpolate(residual, size=(scale, scale), mode="area"))
        code = F.interpolate(output.quantized, size=(5, 5), mode="bicubic")
        residual, total = residual - code, total + code
        losses.append(output.codebook_loss)
    output = quantizer(features)
    torch.testing.assert_close(output.quantized, total)
    torch.testing.assert_close(output.codebook_loss, torch.stack(losses).mean())


def test_one_scale_is_plain_quantisation():
    quantizer = make(scales=(4,))
    features = torch.randn(2, 10, 4, 4)
    output, plain = quantizer(features), quantizer.quantizer(features)
    torch.testing.assert_close(output.quantized, plain.quantized)
    assert torch.equal(output.indices, plain.indices.flatten(1))
    assert output.codebook_loss == plain.codebook_loss


def test_images_of_a_batch_are_independent():
    quantizer = make()
    features = torch.randn(3, 10, 4, 4)
    together = quantizer(features)
    for i in range(3):
        alone = quantizer(features[i : i + 1])
        assert torch.equal(alone.indices, together.indices[i : i + 1])
        torch.testing.assert_close(alone.quantized, together.quantized[i : i + 1])


@pytest.mark.parametrize("dropped", [1, 2])
def test_dropped_scale_is_left_out_of_sum_and_losses(dropped):
    quantizer = make(scales=(1, 2, 4))
    features = torch.randn(2, 10, 4, 4)
    output = quantizer(features, dropped_scale=dropped)
    codes = output.indices.split([1, 4, 16], dim=1)
    assert (codes[dropped] == DROPPED).all()
    assert all((codes[i] >= 0).all() for i in range(3) if i != dropped)
    kept = [
        F.interpolate(quantizer.quantizer.lookup(codes[i]).transpose(1, 2).unflatten(2, (s, s)), (4, 4), mode="bicubic")
        for i, s in enumerate((1, 2, 4))
        if i != dropped
    ]
    torch.testing.assert_close(output.quantized, sum(kept), atol=1e-5, rtol=1e-5)
    if dropped == 2:
        smaller = quantizer.decode_indices(output.indices[:, :5])
        torch.testing.assert_close(output.quantized, smaller, atol=1e-5, rtol=1e-5)


def test_prefix_of_whole_scales_decodes_to_the_running_sum():
    quantizer = make()
    indices = torch.randint(64, (2, 21))
    sums = quantizer.scale_features(indices)
    for length, expected in zip((1, 5, 21), sums, strict=True):
        torch.testing.assert_close(quantizer.decode_indices(indices[:, :length]), expected)


def test_scale_inputs_follow_the_recursive_rule():
    quantizer = make(scales=(1, 2, 4, 6))
    indices = torch.randint(64, (2, 57))
    codes = quantizer.quantizer.lookup(indices).split([1, 4, 16, 36], dim=1)
    total, rows = torch.zeros(2, 10, 1, 1), []
    for code, scale, following in zip(codes, (1, 2, 4), (2, 4, 6), strict=False):
        total = total + code.transpose(1, 2).reshape(2, 10, scale, scale)
        total = F.interpolate(total, size=(following, following), mode="bicubic")
        rows.append(total.reshape(2, 10, -1).transpose(1, 2))
    torch.testing.assert_close(quantizer.scale_inputs(indices), torch.cat(rows, dim=1))
    # What is known after two scales: the inputs of scales 2 and 3.
    torch.testing.assert_close(quantizer.scale_inputs(indices[:, :5]), torch.cat(rows[:2], dim=1))


def test_autocast_changes_nothing():
    quantizer = make(codebook_size=2048)
    features = torch.randn(2, 10, 4, 4)
    plain = quantizer(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(features)
    assert torch.equal(plain.indices, cast.indices)
    assert torch.equal(plain.quantized, cast.quantized)
    assert cast.codebook_loss.dtype == torch.float32
    assert torch.equal(plain.codebook_loss, cast.codebook_loss)


@pytest.mark.parametrize("call", ["decode_indices", "scale_features", "scale_inputs"])
@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.long), "whole number of the scales"),
        (torch.zeros(1, 22, dtype=torch.long), "whole number of the scales"),
        (torch.zeros(1, 0, dtype=torch.long), "whole number of the scales"),
        (torch.full((1, 5), 64), "expected 0 to 63"),
        (torch.full((1, 5), DROPPED), "dropped scale"),
    ],
)
def test_bad_codes_are_refused(call, indices, message):
    with pytest.raises(ValueError, match=message):
        getattr(make(), call)(indices)


def test_bad_features_and_scales_are_refused():
    with pytest.raises(ValueError, match="4 x 4"):
        make()(torch.randn(1, 10, 5, 5))
    with pytest.raises(ValueError, match="code_widths"):
        make()(torch.randn(1, 9, 4, 4))
    for dropped in (0, 3, -1):
        with pytest.raises(ValueError, match="never the first"):
            make()(torch.randn(1, 10, 4, 4), dropped_scale=dropped)


def test_dropped_scale_is_a_function_of_seed_and_step():
    def draws(seed):
        return [draw_dropped_scale(num_scales=5, probability=0.1, seed=seed, step=step) for step in range(4000)]

    assert draws(3) == draws(3) != draws(4)
    counts = collections.Counter(draws(3))
    assert set(counts) == {None, 1, 2, 3, 4}
    assert 0.07 < 1 - counts[None] / 4000 < 0.13
    assert all(60 < counts[scale] < 140 for scale in (1, 2, 3, 4))


def test_dropped_scale_respects_certain_probabilities_and_one_scale():
    steps = range(50)
    assert all(draw_dropped_scale(num_scales=3, probability=0.0, seed=0, step=s) is None for s in steps)
    assert all(draw_dropped_scale(num_scales=3, probability=1.0, seed=0, step=s) in (1, 2) for s in steps)
    assert all(draw_dropped_scale(num_scales=1, probability=1.0, seed=0, step=s) is None for s in steps)
    with pytest.raises(ValueError, match="0 to 1"):
        draw_dropped_scale(num_scales=3, probability=1.5, seed=0, step=0)

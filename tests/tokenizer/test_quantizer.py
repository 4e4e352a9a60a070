import collections

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.threads import torch_threads
from tokenflow.tokenizer import quantizer as module
from tokenflow.tokenizer.quantizer import (
    DROPPED,
    MultiScaleQuantizer,
    QuantizerConfig,
    SharedIndexQuantizer,
    draw_dropped_scale,
)


def make(codebook_size=64, widths=(6, 4), scales=(1, 2, 4), **options):
    weights = options.pop("distance_weights", (1.0,) * len(widths))
    config = QuantizerConfig(
        codebook_size=codebook_size, code_widths=widths, distance_weights=weights, scales=scales, **options
    )
    return MultiScaleQuantizer(config)


def normalised(x, widths):
    return torch.cat([F.normalize(part, dim=-1) for part in x.split(widths, dim=-1)], dim=-1)


def naive_quantize(quantizer, features):
    """Equations 1 to 3, on every token against every code."""
    widths = quantizer.config.code_widths
    tokens = normalised(features.permute(0, 2, 3, 1), widths)
    table = normalised(torch.cat(quantizer.codebooks, dim=1), widths)
    squares = (tokens[..., None, :] - table).square().split(widths, dim=-1)
    distances = sum(w * part.sum(-1) for w, part in zip(quantizer.config.distance_weights, squares, strict=True))
    indices = distances.argmin(-1)
    return tokens, table[indices], indices, distances


def gradients(loss, *of):
    return torch.autograd.grad(loss, of, retain_graph=True)


@pytest.mark.parametrize("widths", [(8,), (6, 4), (5, 4, 3)])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_quantizer_matches_the_equations_for_one_two_and_three_codebooks(widths, weight):
    quantizer = make(widths=widths, distance_weights=(weight, 1.0, 0.5)[: len(widths)]).quantizer
    features = torch.randn(2, sum(widths), 3, 3, requires_grad=True)
    output = quantizer(features)
    tokens, codes, indices, _ = naive_quantize(quantizer, features)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.quantized.permute(0, 2, 3, 1), codes)
    codebook_loss = (codes - tokens.detach()).square().mean()
    commitment_loss = 0.25 * (codes.detach() - tokens).square().mean()
    torch.testing.assert_close(output.codebook_loss, codebook_loss)
    torch.testing.assert_close(output.commitment_loss, commitment_loss)
    for actual, expected in zip(
        gradients(output.codebook_loss + output.commitment_loss, features, *quantizer.codebooks),
        gradients(codebook_loss + commitment_loss, features, *quantizer.codebooks),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_output_gradient_goes_straight_through_to_the_normalisation():
    quantizer = make().quantizer
    features = torch.randn(2, 10, 3, 3, requires_grad=True)
    cotangent = torch.randn(2, 10, 3, 3)
    output = quantizer(features)
    (actual,) = gradients((output.quantized * cotangent).sum(), features)
    tokens = normalised(features.permute(0, 2, 3, 1), (6, 4)).permute(0, 3, 1, 2)
    (expected,) = gradients((tokens * cotangent).sum(), features)
    torch.testing.assert_close(actual, expected)
    codebook_gradients = torch.autograd.grad(output.quantized.sum(), quantizer.codebooks, allow_unused=True)
    assert all(gradient is None for gradient in codebook_gradients)


def test_commitment_loss_gradient_agrees_with_finite_differences():
    quantizer = make(codebook_size=4).quantizer.double()
    features = torch.randn(1, 10, 2, 2, dtype=torch.float64)

    def commitment(x):
        tokens = normalised(x.permute(0, 2, 3, 1), (6, 4))
        codes = quantizer.lookup(quantizer(x).indices).double()
        return 0.25 * (codes.detach() - tokens).square().mean()

    features.requires_grad_()
    assert torch.autograd.gradcheck(commitment, features, eps=1e-6, atol=1e-6)
    (actual,) = gradients(quantizer(features).commitment_loss, features)
    (expected,) = gradients(commitment(features), features)
    torch.testing.assert_close(actual, expected, atol=1e-7, rtol=1e-4)


@settings(max_examples=15, deadline=None)
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


def test_half_precision_features_and_codebooks_are_quantised_in_fp32():
    quantizer = make(codebook_size=2048).bfloat16()
    features = torch.randn(2, 10, 4, 4).bfloat16()
    output = quantizer(features)
    assert output.quantized.dtype == torch.bfloat16
    assert output.codebook_loss.dtype == torch.float32
    expected = quantizer.float()(features.float())
    assert torch.equal(output.indices, expected.indices)
    torch.testing.assert_close(output.quantized, expected.quantized.bfloat16())


def test_repeated_runs_give_the_same_gradients():
    quantizer = make(codebook_size=8)
    features = torch.randn(4, 10, 4, 4)

    def gradient():
        output = quantizer(features)
        return torch.autograd.grad(output.codebook_loss, quantizer.quantizer.codebooks)

    assert all(torch.equal(a, b) for a, b in zip(gradient(), gradient(), strict=True))


def naive_entropy(quantizer, features):
    distances = naive_quantize(quantizer, features)[3].flatten(0, 2)
    probability = (-distances / quantizer.config.entropy_temperature).softmax(1)
    mean = probability.mean(0)
    return 0.1 * (-(probability * (probability + 1e-30).log()).sum(1).mean() + (mean * (mean + 1e-5).log()).sum())


@pytest.mark.parametrize("elements", [1, 7 * 64, 2**22])
def test_entropy_term_does_not_depend_on_its_blocks(elements, monkeypatch):
    monkeypatch.setattr(module, "_ENTROPY_CHUNK_ELEMENTS", elements)
    quantizer = make(entropy_weight=0.1, entropy_temperature=0.5).quantizer
    features = torch.randn(2, 10, 3, 3, requires_grad=True)
    loss, expected = quantizer(features).entropy_loss, naive_entropy(quantizer, features)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    for a, b in zip(
        gradients(loss, features, *quantizer.codebooks),
        gradients(expected, features, *quantizer.codebooks),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_entropy_term_is_zero_and_free_by_default(monkeypatch):
    monkeypatch.setattr(SharedIndexQuantizer, "_block_entropy", None)
    output = make()(torch.randn(1, 10, 4, 4))
    assert output.entropy_loss == 0


def test_codebooks_learn_to_sit_on_the_features():
    quantizer = make(codebook_size=16, scales=(4,))
    features = torch.randn(1, 10, 4, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    first = quantizer(features).codebook_loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(features).codebook_loss.backward()
        optimizer.step()
    assert quantizer(features).codebook_loss.item() < 0.2 * first


def test_state_dict_holds_the_codebooks_only():
    assert {k: tuple(v.shape) for k, v in make().state_dict().items()} == {
        "quantizer.codebook_0": (64, 6),
        "quantizer.codebook_1": (64, 4),
    }


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


@pytest.mark.parametrize(
    "fields",
    [
        {"codebook_size": 0},
        {"code_widths": ()},
        {"distance_weights": (1.0,)},
        {"distance_weights": (-1.0, 1.0)},
        {"scales": ()},
        {"scales": (1, 4, 2)},
        {"scales": (1, 1)},
        {"commitment_weight": -0.1},
        {"entropy_temperature": 0.0},
    ],
)
def test_impossible_configuration_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        QuantizerConfig(**{"codebook_size": 8, **fields})


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


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("entropy_weight", "codebook_size"), [(0.0, 16384), (0.1, 4096)])
def test_no_operation_holds_tokens_times_codes(entropy_weight, codebook_size, monkeypatch):
    monkeypatch.setattr(module, "_ENTROPY_CHUNK_ELEMENTS", 2**19)
    quantizer = make(codebook_size=codebook_size, scales=(16,), entropy_weight=entropy_weight).quantizer
    features = torch.randn(4, 10, 16, 16, requires_grad=True)
    with torch_threads(1), LargestTensor() as largest:  # the mode sees the operations of this thread only
        output = quantizer(features)
        (output.quantized.sum() + output.codebook_loss + output.commitment_loss + output.entropy_loss).backward()
    assert largest.elements <= 2**20 <= 1024 * codebook_size / 4

"""One index for all codebooks (paper, equations 1 to 3): distances, gradients, losses, precision, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.threads import torch_threads
from tests.tokenizer.tiny_quantizer import gradients, make
from tokenflow.tokenizer import quantizer as module
from tokenflow.tokenizer.quantizer import QuantizerConfig, SharedIndexQuantizer


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

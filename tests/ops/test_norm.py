import importlib.util

import pytest
import torch

from tokenflow.ops.norm import rms_norm


def naive(x, weight, epsilon):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


@pytest.mark.parametrize("shape", [(3, 5, 16), (7, 8), (2, 3, 4, 6)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_result_is_the_naive_formula(shape, scale):
    x, weight = torch.randn(shape) * scale, torch.randn(shape[-1])
    found = rms_norm(x, weight, epsilon=1e-5)
    torch.testing.assert_close(found, naive(x, weight, 1e-5).float(), atol=1e-5, rtol=1e-5)


def test_bf16_is_computed_in_fp32_and_returned_as_bf16():
    x, weight = (torch.randn(4, 4096) * 30).bfloat16(), torch.randn(4096).bfloat16()
    found = rms_norm(x, weight, epsilon=1e-5)
    assert torch.equal(found, rms_norm(x.float(), weight.float(), epsilon=1e-5).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rms_norm(x, weight, epsilon=1e-5), found)


def test_apex_is_used_or_refused_when_named():
    with pytest.raises(ValueError, match=r"needs NVIDIA apex and a GPU.*'torch' or 'auto'"):
        rms_norm(torch.randn(2, 4), torch.ones(4), epsilon=1e-5, backend="apex")


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("apex") is None, reason="needs a GPU and NVIDIA apex"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apex_agrees_forward_and_backward(dtype):
    x, weight = torch.randn(64, 512, device="cuda", dtype=dtype), torch.randn(512, device="cuda", dtype=dtype)
    results = []
    for backend in ("torch", "apex"):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
        output = rms_norm(*inputs, epsilon=1e-5, backend=backend)
        results.append((output, *torch.autograd.grad(output.float().sin().sum(), inputs)))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, atol=2e-2, rtol=2e-2)

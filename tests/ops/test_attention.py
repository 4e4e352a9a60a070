import math

import pytest
import torch

from tokenflow.ops.attention import attention, available_backends, resolve_backend
from tokenflow.ops.attention_flash import varlen_attention
from tokenflow.ops.attention_layout import AttentionLayout, Sample

SCALES = (1, 2, 3)
LAYOUTS = {
    "causal": AttentionLayout.causal(2, 9),
    "uniform": AttentionLayout.uniform(2, 21, Sample(0, 5, SCALES, 2)),
    "no text": AttentionLayout.uniform(2, 14, Sample(0, 0, SCALES)),
    "left padding": AttentionLayout(((Sample(0, 6, SCALES),), (Sample(4, 2, SCALES),), (Sample(6, 0, SCALES),)), 20),
    "both paddings": AttentionLayout(((Sample(1, 4, SCALES, 3),), (Sample(3, 2, SCALES, 3),)), 26),
    "long left padding": AttentionLayout(((Sample(2, 140, SCALES, 1),), (Sample(40, 102, SCALES, 1),)), 160),
    "right-padded text": AttentionLayout(((Sample(1, 7),), (Sample(1, 3),)), 9),
    "right padding": AttentionLayout(((Sample(0, 6, SCALES, 1),), (Sample(0, 3, SCALES, 2),)), 22),
    "ragged text": AttentionLayout(((Sample(0, 7),), (Sample(2, 3),), (Sample(1, 4, (), 2),)), 9),
    "packed": AttentionLayout(
        (
            (Sample(0, 3, SCALES), Sample(17, 2, SCALES, 1), Sample(34, 2)),
            (Sample(1, 2, SCALES), Sample(18, 1, SCALES, 1), Sample(35, 4)),
        ),
        40,
    ),
    "packed unlike": AttentionLayout(
        ((Sample(0, 3, SCALES), Sample(17, 2, (1, 2))), (Sample(0, 12), Sample(12, 9), Sample(22, 3)), ()), 25
    ),
    "long tail": AttentionLayout.uniform(1, 150, Sample(0, 5, (1,), 144)),
}
BACKENDS = ["segmented", "flex", "varlen"]


def naive(query, key, value, layout):
    """Position by position in double precision, from the words of the layout rather than from its mask."""
    output = torch.zeros(query.shape, dtype=torch.float64)
    repeats = query.shape[1] // key.shape[1]
    for b, row in enumerate(layout.rows):
        for sample in row:
            for q in range(sample.start, sample.end):
                stop = next((e for e in sample.scale_ends if sample.image_start <= q < e), q + 1)
                for h in range(query.shape[1]):
                    k, v = (x[b, h // repeats, sample.start : stop].double() for x in (key, value))
                    weights = (k @ query[b, h, q].double() / math.sqrt(query.shape[-1])).softmax(0)
                    output[b, h, q] = weights @ v
    return output


def naive_varlen(query, key, value, query_bounds, key_bounds, longest_query, longest_key, *, causal):
    """What `flash_attn_varlen_func` promises: causal is aligned at the last query and the last key."""
    outputs = []
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    for i in range(len(query_bounds) - 1):
        q = query[query_bounds[i] : query_bounds[i + 1]]
        k, v = (x[key_bounds[i] : key_bounds[i + 1]] for x in (key, value))
        assert len(q) <= longest_query and len(k) <= longest_key
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        if causal:
            hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
            scores = scores.masked_fill(hidden, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(outputs)


def run(backend, query, key, value, layout):
    if backend == "varlen":
        return varlen_attention(query, key, value, layout, kernel=naive_varlen)
    return attention(query, key, value, layout=layout, backend=backend)


def tensors(layout, *, heads=4, groups=2, width=16, dtype=torch.float32, gradients=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(layout.batch, count, layout.length, width) for count in (heads, groups, groups)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(gradients) for shape in shapes]


def outputs_at_tokens(output, layout):
    return output.transpose(1, 2)[layout.is_token(output.device)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_dense_reference_does_what_the_layout_says(name):
    layout = LAYOUTS[name]
    inputs = tensors(layout)
    output = attention(*inputs, layout=layout, backend="dense")
    expected = naive(*inputs, layout)
    torch.testing.assert_close(outputs_at_tokens(output, layout), outputs_at_tokens(expected.float(), layout))


@pytest.mark.parametrize("heads_and_groups", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_backends_agree_with_the_reference_forward(name, backend, heads_and_groups):
    layout = LAYOUTS[name]
    inputs = tensors(layout, heads=heads_and_groups[0], groups=heads_and_groups[1])
    expected = attention(*inputs, layout=layout, backend="dense")
    output = run(backend, *inputs, layout)
    assert output.isfinite().all() and expected.isfinite().all()
    torch.testing.assert_close(
        outputs_at_tokens(output, layout), outputs_at_tokens(expected, layout), atol=2e-6, rtol=1e-5
    )


def gradients(backend, layout, groups):
    inputs = tensors(layout, groups=groups, gradients=True)
    output = outputs_at_tokens(run(backend, *inputs, layout), layout)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * cotangent).sum(), inputs)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("backend", ["segmented", "varlen"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_backends_agree_with_the_reference_backward(name, backend, groups):
    layout = LAYOUTS[name]
    for found, expected in zip(gradients(backend, layout, groups), gradients("dense", layout, groups), strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_padding_neither_gives_nor_takes(backend):
    layout = LAYOUTS["both paddings"]
    inputs = tensors(layout)
    padding = ~layout.is_token("cpu")[:, None, :, None]
    changed = [torch.where(padding, torch.tensor(1e4), x) for x in inputs]
    before, after = (outputs_at_tokens(run(backend, *x, layout), layout) for x in (inputs, changed))
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["left padding", "right padding", "ragged text", "packed"])
def test_a_loss_of_tokens_sends_padding_no_gradient(name):
    layout = LAYOUTS[name]
    inputs = tensors(layout, gradients=True)
    output = outputs_at_tokens(attention(*inputs, layout=layout, backend="segmented"), layout)
    for gradient in torch.autograd.grad(output.sin().sum(), inputs):
        assert (gradient.transpose(1, 2)[~layout.is_token("cpu")] == 0).all()


@pytest.mark.parametrize("name", ["uniform", "left padding", "packed unlike"])
def test_segmented_agrees_in_bf16(name):
    layout = LAYOUTS[name]
    inputs = tensors(layout, dtype=torch.bfloat16)
    expected = outputs_at_tokens(attention(*(x.float() for x in inputs), layout=layout, backend="dense"), layout)
    found = outputs_at_tokens(attention(*inputs, layout=layout, backend="segmented"), layout)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=3e-2)


def test_blocks_of_flex_cover_what_the_dense_mask_shows():
    from tokenflow.ops.attention_flex import block_mask

    layout = AttentionLayout(((Sample(5, 120, (1, 6, 12, 13)),), (Sample(0, 125, (1, 6, 12, 13), 9),)), 520)
    blocks = block_mask(layout, torch.device("cpu"))
    expected = torch.nn.functional.pad(layout.dense_mask("cpu"), (0, 120, 0, 120)).unflatten(3, (5, 128))
    expected = expected.unflatten(2, (5, 128)).any(5).any(3)
    assert torch.equal(blocks.to_dense().bool(), expected)


def test_an_explicit_backend_is_taken_or_refused_with_alternatives():
    with pytest.raises(ValueError, match=r"'flash' cannot run on cpu: .*Available: dense, segmented"):
        resolve_backend("flash", device="cpu")
    with pytest.raises(ValueError, match="expected one of auto, dense"):
        resolve_backend("eager", device="cpu")
    assert resolve_backend("dense", device="cpu").name == "dense"
    chosen = resolve_backend("auto", device="cpu")
    assert chosen.name == "segmented" and chosen.reason


def test_flex_on_cpu_refuses_gradients_rather_than_losing_them():
    layout = LAYOUTS["uniform"]
    with pytest.raises(ValueError, match=r"no backward on a CPU.*'segmented'"):
        attention(*tensors(layout, gradients=True), layout=layout, backend="flex")


def test_a_layout_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="layout has 3 rows of 21 positions"):
        attention(*tensors(LAYOUTS["uniform"]), layout=AttentionLayout.uniform(3, 21, Sample(0, 21)))


@pytest.mark.skipif(
    not torch.cuda.is_available() or available_backends("cuda")["flash"] is not None,
    reason="needs a GPU and flash-attn (pip install tokenflow[gpu])",
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_flash_agrees_with_the_reference_forward_and_backward(name):
    layout = LAYOUTS[name]
    inputs = [x.cuda().bfloat16().requires_grad_() for x in tensors(layout, width=64)]
    found = outputs_at_tokens(attention(*inputs, layout=layout, backend="flash"), layout)
    expected = outputs_at_tokens(attention(*(x.float() for x in inputs), layout=layout, backend="dense"), layout)
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=3e-2)
    pairs = [torch.autograd.grad(output.float().sin().sum(), inputs) for output in (found, expected)]
    for left, right in zip(*pairs, strict=True):
        torch.testing.assert_close(left, right, atol=6e-2, rtol=6e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["segmented", "flex"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_gpu_backends_agree_with_the_reference_forward_and_backward(name, backend):
    layout = LAYOUTS[name]
    inputs = [x.cuda().requires_grad_() for x in tensors(layout, width=32)]
    outputs = [outputs_at_tokens(run(b, *inputs, layout), layout) for b in (backend, "dense")]
    torch.testing.assert_close(*outputs, atol=5e-3, rtol=5e-3)
    for left, right in zip(*(torch.autograd.grad(o.sin().sum(), inputs) for o in outputs), strict=True):
        torch.testing.assert_close(left, right, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", ["segmented", "dense"])
def test_training_in_bf16_on_a_cpu_computes_attention_in_fp32(backend, autocast):
    layout = LAYOUTS["uniform"]
    inputs = [torch.randn(2, heads, 21, 8).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attention(*inputs, layout=layout, backend=backend)
    expected = attention(*wide, layout=layout, backend=backend)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    direction = torch.randn_like(found)
    gradients = torch.autograd.grad(found, inputs, direction)
    for found_gradient, gradient in zip(gradients, torch.autograd.grad(expected, wide, direction.float()), strict=True):
        assert torch.equal(found_gradient, gradient.bfloat16())

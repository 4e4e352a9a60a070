import dataclasses

import pytest
import torch

from tokenflow.language.cache import KeyValueCache
from tokenflow.language.config import LANGUAGE_PRESETS, LanguageConfig
from tokenflow.language.transformer import CausalTransformer
from tokenflow.ops.attention_layout import AttentionLayout, Sample

SCALES = (1, 2, 3)
BASE = LanguageConfig(
    vocabulary_size=50, width=24, depth=2, heads=4, kv_heads=2, head_width=8, mlp_width=40, max_positions=64
)
VARIANTS = {
    "plain": BASE,
    "paper": dataclasses.replace(BASE, norm_order="post", qk_norm=True, kv_heads=4),
    "biases": dataclasses.replace(BASE, qkv_bias=True, output_bias=True, mlp_bias=True),
}


def model_of(config):
    torch.manual_seed(3)
    model = CausalTransformer(config)
    for parameter in model.parameters():  # away from ones, zeros and small weights, which hide errors
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model


def ragged_problem(config, texts):
    """Left-padded rows, a layout over them, and every position's rotation index counted from the text's start."""
    longest, image = max(texts), sum(s * s for s in SCALES)
    layout = AttentionLayout(tuple((Sample(longest - t, t, SCALES),) for t in texts), longest + image)
    embeddings = torch.randn(len(texts), longest + image, config.width)
    positions = torch.arange(longest + image) - (longest - torch.tensor(texts))[:, None]
    return layout, embeddings, positions


def fill_text(model, embeddings, positions, texts, extra=0):
    """Prefill of the same texts, right-padded as `prefill` wants them."""
    longest = max(texts)
    length = embeddings.shape[1] + extra
    cache = KeyValueCache(model.config, batch=len(texts), max_length=length)
    text = torch.full((len(texts), longest, model.config.width), 7.0)
    for row, t in enumerate(texts):
        text[row, :t] = embeddings[row, longest - t : longest]
    hidden = model.prefill(text, lengths=texts, cache=cache)
    return cache, hidden


@pytest.mark.parametrize("texts", [(5, 5), (5, 2, 0), (1, 4)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_steps_equal_the_uncached_forward(variant, texts):
    model = model_of(VARIANTS[variant])
    layout, embeddings, positions = ragged_problem(model.config, texts)
    expected = model(embeddings, layout=layout, positions=positions)
    cache, hidden = fill_text(model, embeddings, positions, texts)
    for row, t in enumerate(texts):
        torch.testing.assert_close(hidden[row, :t], expected[row, max(texts) - t : max(texts)], atol=1e-5, rtol=1e-4)
    start = max(texts)
    for scale in SCALES:
        span = slice(start, start + scale * scale)
        found = model.step(embeddings[:, span], cache=cache, positions=positions[:, span])
        torch.testing.assert_close(found, expected[:, span], atol=1e-5, rtol=1e-4)
        start = span.stop
    assert cache.length == start and cache.lengths == tuple(t + start - max(texts) for t in texts)


@pytest.mark.parametrize("texts", [(4, 4), (4, 1)])
def test_refined_and_discarded_steps_leave_the_cache_bit_identical(texts):
    model = model_of(BASE)
    layout, embeddings, positions = ragged_problem(BASE, texts)
    cache, _ = fill_text(model, embeddings, positions, texts, extra=9)
    for span in (slice(4, 5), slice(5, 9)):
        model.step(embeddings[:, span], cache=cache, positions=positions[:, span])
    before, length = cache.data.clone(), cache.length
    changed = embeddings.clone()
    changed[:, 5:9] += 1
    refined = model.step(changed[:, 5:9], cache=cache, positions=positions[:, 5:9], keep="refine")
    discarded = model.step(embeddings[:, 9:18], cache=cache, positions=positions[:, 9:18], keep="discard")
    assert torch.equal(cache.data, before) and cache.length == length
    torch.testing.assert_close(
        refined, model(changed, layout=layout, positions=positions)[:, 5:9], atol=1e-5, rtol=1e-4
    )
    appended = model.step(embeddings[:, 9:18], cache=cache, positions=positions[:, 9:18])
    assert torch.equal(appended, discarded)


def test_single_token_steps_equal_causal_text():
    model = model_of(BASE)
    embeddings = torch.randn(2, 9, BASE.width)
    expected = model(embeddings, layout=AttentionLayout.causal(2, 9))
    cache = KeyValueCache(BASE, batch=2, max_length=9)
    model.prefill(embeddings[:, :4], lengths=[4, 4], cache=cache)
    for i in range(4, 9):
        found = model.step(embeddings[:, i : i + 1], cache=cache, positions=torch.full((2, 1), i))
        torch.testing.assert_close(found, expected[:, i : i + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["dense", "segmented", "flex"])
def test_attention_backends_give_the_same_hidden_states(backend):
    layout, embeddings, positions = ragged_problem(BASE, (5, 2))
    tokens = layout.is_token("cpu")
    with torch.no_grad():
        expected, found = (
            model_of(dataclasses.replace(BASE, attention=name))(embeddings, layout=layout, positions=positions)[tokens]
            for name in ("dense", backend)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_checkpointed_layers_give_the_same_gradients():
    layout, embeddings, positions = ragged_problem(BASE, (5, 2))
    gradients = []
    for checkpointing in ("none", "layer"):
        model = model_of(dataclasses.replace(BASE, checkpointing=checkpointing))
        output = model(embeddings, layout=layout, positions=positions)[layout.is_token("cpu")]
        gradients.append(torch.autograd.grad(output.square().sum(), list(model.layers.parameters())))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again) and plain.isfinite().all()


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_is_close_to_fp32(variant, precision):
    model = model_of(VARIANTS[variant])
    layout, embeddings, positions = ragged_problem(model.config, (5, 2))
    tokens = layout.is_token("cpu")
    expected = model(embeddings, layout=layout, positions=positions)[tokens]
    if precision == "bf16":
        found = model.bfloat16()(embeddings.bfloat16(), layout=layout, positions=positions)[tokens]
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = model(embeddings, layout=layout, positions=positions)[tokens]
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 0.05
    found.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_padding_inputs_do_not_change_tokens():
    model = model_of(BASE)
    layout, embeddings, positions = ragged_problem(BASE, (5, 2))
    tokens = layout.is_token("cpu")
    changed = torch.where(tokens[..., None], embeddings, torch.tensor(100.0))
    first, second = (model(x, layout=layout, positions=positions)[tokens] for x in (embeddings, changed))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("preset", "parameters"), [("llama-2-7b", 6_738_415_616), ("tinyllama-1.1b", 1_100_048_384)])
def test_presets_have_the_published_number_of_parameters(preset, parameters):
    config = LANGUAGE_PRESETS[preset]
    with torch.device("meta"):
        model = CausalTransformer(config)
    head = config.vocabulary_size * config.width
    assert sum(p.numel() for p in model.parameters()) + head == parameters


def test_a_full_cache_and_wrong_lengths_are_refused():
    model = model_of(BASE)
    cache = KeyValueCache(BASE, batch=2, max_length=5)
    text = torch.randn(2, 4, BASE.width)
    with pytest.raises(ValueError, match="expected 2 of them"):
        model.prefill(text, lengths=[4], cache=cache)
    with pytest.raises(ValueError, match="refine stands in for the newest 1"):
        model.step(text[:, :1], cache=cache, positions=torch.zeros(2, 1, dtype=torch.int64), keep="refine")
    model.prefill(text, lengths=[4, 2], cache=cache)
    with pytest.raises(ValueError, match="4 positions and 4 more do not fit a cache of 5"):
        model.step(text, cache=cache, positions=torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="already holds 4"):
        model.prefill(text, lengths=[4, 2], cache=cache)
    assert cache.bytes() == BASE.depth * 2 * 2 * BASE.kv_heads * 5 * BASE.head_width * 4
    cache.clear()
    model.prefill(text, lengths=[4, 4], cache=cache)


def test_bad_sizes_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads"):
        dataclasses.replace(BASE, kv_heads=3)
    with pytest.raises(ValueError, match="rope_type 'yarn'"):
        dataclasses.replace(BASE, rope_scaling={"rope_type": "yarn", "factor": 2.0})
    with pytest.raises(ValueError, match="'flash' cannot run"):
        CausalTransformer(dataclasses.replace(BASE, attention="flash"))


@pytest.mark.parametrize("texts", [None, (4, 2)])
def test_causal_positions_appended_in_parts_equal_the_whole_forward(texts):
    model = model_of(BASE)
    length, rows = 11, 2
    embeddings = torch.randn(rows, length, BASE.width)
    begins = torch.zeros(rows, dtype=torch.int64) if texts is None else max(texts) - torch.tensor(texts)
    positions = torch.arange(length) - begins[:, None]
    layout = AttentionLayout(tuple((Sample(int(begin), length - int(begin)),) for begin in begins), length)
    expected = model(embeddings, layout=layout, positions=positions)
    if texts is None:
        cache, start = KeyValueCache(BASE, batch=rows, max_length=length), 0
    else:
        cache, _ = fill_text(model, embeddings[:, : max(texts)], positions, texts, extra=length)
        start = max(texts)
    for stop in (5, 6, length):
        found = model.extend(embeddings[:, start:stop], cache=cache, positions=positions[:, start:stop])
        torch.testing.assert_close(found, expected[:, start:stop], atol=1e-5, rtol=1e-4)
        start = stop
    cache.rewind(6)
    again = model.extend(embeddings[:, 6:], cache=cache, positions=positions[:, 6:])
    torch.testing.assert_close(again, expected[:, 6:], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="length is 40"):
        cache.rewind(40)


@pytest.mark.parametrize("checkpointing", ["none", "layer"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("wanted", [[0, 3, 4, 17, 30], []])
def test_wanted_positions_alone_are_those_of_the_whole_rows(variant, checkpointing, wanted):
    model = model_of(dataclasses.replace(VARIANTS[variant], checkpointing=checkpointing))
    layout, embeddings, positions = ragged_problem(model.config, (5, 2))
    wanted = torch.tensor(wanted, dtype=torch.int64)
    whole = model(embeddings, layout=layout, positions=positions).flatten(0, 1)[wanted]
    alone = model(embeddings, layout=layout, positions=positions, wanted=wanted)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
    weights = [p for name, p in model.named_parameters() if "embed_tokens" not in name]
    gradients = [torch.autograd.grad(hidden.sin().sum(), weights) for hidden in (alone, whole)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

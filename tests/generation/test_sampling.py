"""Sampling with the cache equals whole recomputation; batches, prompts' lengths and packing change nothing."""

import dataclasses

import pytest
import torch

from tests.generation.tiny import build, build_quantizer, class_config, texts, tiny_config
from tokenflow.generation.choosing import ImageStreams
from tokenflow.generation.config import check_tokenizer
from tokenflow.generation.options import SamplingConfig
from tokenflow.generation.packing import for_sampling
from tokenflow.generation.predictors import CachedPredictor, UncachedPredictor
from tokenflow.generation.sampling import sample_codes
from tokenflow.generation.scale_features import GrowingFeatures
from tokenflow.generation.text_field import class_tokens

TIE = 1e-4
GREEDY = SamplingConfig(guidance_scale=3.0, top_k=(1, 1, 1), top_p=(0.0,) * 3)
RANDOM = SamplingConfig(guidance_scale=3.0, top_k=(20, 8, 2), top_p=(0.9, 0.8, 1.0))


def sample(model, text, negative, config, *, predictor=CachedPredictor, seed=0, first=0, record=None, **options):
    keywords = {name: options.pop(name) for name in ("num_scales", "progress", "forced") if name in options}
    return sample_codes(
        predictor(model, text, negative, **options),
        generator=model,
        quantizer=build_quantizer(model.config),
        config=config,
        streams=ImageStreams(seed=seed, indices=range(first, first + len(text.lengths))),
        batch=len(text.lengths),
        **keywords,
    )


def cases():
    yield "text", tiny_config(), (7, 2, 4), 3
    yield "row positions", tiny_config(text_positions="row"), (7, 2, 4), 5
    yield "grouped heads", tiny_config(kv_heads=2), (3, 3), 3
    yield "codes only", tiny_config(head_rows="codes", loss_over="codes"), (5, 6), 2


@pytest.mark.parametrize("extent", ["full", "prefix"])
@pytest.mark.parametrize(("config", "lengths", "negative"), [pytest.param(*c[1:], id=c[0]) for c in cases()])
def test_cached_codes_equal_whole_recomputation_but_for_ties(config, lengths, negative, extent):
    model = build(config)
    text, negative = texts(config, *lengths), texts(config, negative, seed=9)
    trace = []
    whole = sample(model, text, negative, GREEDY, predictor=UncachedPredictor, extent=extent, progress=trace.append)
    calls = iter(trace)

    def compare(state):
        expected = next(calls)
        count = state.logits.shape[1]
        best, second = expected.logits.topk(2, dim=-1)[0].unbind(-1)
        wrong = state.codes[:, -count:] != expected.codes[:, -count:]
        assert not (wrong & (best - second > TIE)).any(), f"scale {state.scale}, step {state.step}"
        torch.testing.assert_close(state.logits, expected.logits, atol=1e-3, rtol=1e-4)

    steps = {(state.scale, state.step): state.codes[:, -state.logits.shape[1] :] for state in trace}
    sample(model, text, negative, GREEDY, progress=compare, forced=lambda scale, step: steps[scale, step])
    assert len(whole.unique()) > 5, "the test needs codes that differ"


def test_teacher_forced_argmax_equals_greedy_codes():
    """One greedy step a scale is what the training forward predicts at the same place."""
    config = tiny_config(head_rows="codes", loss_over="codes")
    model = build(config)
    text = texts(config, 5, 3)
    codes = sample(model, text, None, SamplingConfig(guidance_scale=0.0, top_k=(1,), top_p=(0.0,)))
    assert float(model(text.ids, codes, build_quantizer(config).scale_inputs(codes)).accuracy) == 1.0


def test_an_image_is_the_same_in_any_batch():
    config = tiny_config()
    model = build(config)
    text, negative = texts(config, 7, 2, 4, 5), texts(config, 3, seed=9)
    together = sample(model, text, negative, RANDOM, seed=4)
    for row in range(4):
        alone = dataclasses.replace(text, ids=text.ids[row : row + 1], lengths=text.lengths[row : row + 1])
        assert torch.equal(sample(model, alone, negative, RANDOM, seed=4, first=row)[0], together[row])
    assert not torch.equal(sample(model, text, negative, RANDOM, seed=5), together)


def test_refinement_leaves_no_trace_in_the_cache():
    config = tiny_config()
    model = build(config)
    text, negative = texts(config, 5), texts(config, 3, seed=9)
    one = SamplingConfig(guidance_scale=3.0, top_k=(1,), top_p=(0.0,))
    plain = []
    sample(model, text, negative, one, progress=plain.append)
    steps = {state.scale: state.codes[:, -state.logits.shape[1] :] for state in plain}
    refined = []
    sample(model, text, negative, GREEDY, progress=refined.append, forced=lambda scale, step: steps[scale])
    first = [state.logits for state in refined if state.step == 0]
    for ours, expected in zip(first, plain, strict=True):
        torch.testing.assert_close(ours, expected.logits, atol=1e-5, rtol=1e-5)


def test_guidance_is_the_formula_on_logits():
    config = tiny_config()
    model = build(config)
    text, negative = texts(config, 5), texts(config, 3, seed=9)
    none = SamplingConfig(guidance_scale=0.0, top_k=(1,), top_p=(0.0,))
    guided = SamplingConfig(guidance_scale=4.0, guidance="constant", top_k=(1,), top_p=(0.0,))
    traces = [[], [], []]
    codes = sample(model, text, negative, guided, progress=traces[0].append)
    steps = {state.scale: state.codes[:, -state.logits.shape[1] :] for state in traces[0]}
    for prompt, trace in zip((text, negative), traces[1:], strict=True):
        sample(model, prompt, None, none, progress=trace.append, forced=lambda scale, step: steps[scale])
    for mixed, conditional, unconditional in zip(*traces, strict=True):
        expected = 5.0 * conditional.logits - 4.0 * unconditional.logits
        torch.testing.assert_close(mixed.logits, expected, atol=1e-3, rtol=1e-4)
    assert codes.shape == (1, config.num_codes)


def test_stopping_gives_the_first_scales_of_the_whole():
    config = tiny_config()
    model = build(config)
    text, negative = texts(config, 5, 2), texts(config, 3, seed=9)
    whole = sample(model, text, negative, RANDOM)
    assert torch.equal(sample(model, text, negative, RANDOM, num_scales=2), whole[:, :5])


def test_packed_matrices_give_the_same_logits():
    config = tiny_config()
    model = build(config)
    text, negative = texts(config, 5, 2), texts(config, 3, seed=9)
    plain, packed = [], []
    codes = sample(model, text, negative, GREEDY, progress=plain.append)
    twin = for_sampling(model, "packed")
    assert twin is not model and for_sampling(model, "plain") is model
    sample(
        twin,
        text,
        negative,
        GREEDY,
        progress=packed.append,
        forced=lambda scale, step: next(
            s.codes[:, -s.logits.shape[1] :] for s in plain if (s.scale, s.step) == (scale, step)
        ),
    )
    for ours, expected in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours.logits, expected.logits, atol=1e-3, rtol=1e-4)
    assert torch.equal(sample(model, text, negative, GREEDY), codes), "packing must leave the model as it was"


def test_what_cannot_be_packed_says_why():
    model = build(tiny_config()).bfloat16()
    assert for_sampling(model, "auto") is model
    with pytest.raises(ValueError, match=r"torch.bfloat16 on cpu"):
        for_sampling(model, "packed")


def test_a_model_in_training_under_autocast_can_be_sampled():
    config = tiny_config()
    model = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        assert for_sampling(model, "auto") is model
        with pytest.raises(ValueError, match="autocast"):
            for_sampling(model, "packed")
        codes = sample(model, texts(config, 5, 2), texts(config, 3, seed=9), GREEDY)
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < config.codebook_size


def test_class_prompts():
    config = class_config()
    model = build(config)
    text, negative = class_tokens([0, 1, 2], config), class_tokens([None], config)
    codes = sample(model, text, negative, GREEDY)
    assert torch.equal(sample(model, text, negative, GREEDY, predictor=UncachedPredictor), codes)
    assert not torch.equal(codes[0], codes[1])


def test_growing_features_equal_the_tokenizers():
    config = tiny_config(scales=(1, 2, 3, 4), text_length=4)
    quantizer = build_quantizer(config)
    codes = torch.randint(32, (2, 30))
    growing, rows = GrowingFeatures(quantizer, batch=2), []
    for part in codes.split([1, 4, 9, 16], dim=1):
        rows.append(growing.rows())
        growing.advance(part)
    torch.testing.assert_close(torch.cat(rows[1:], dim=1), quantizer.scale_inputs(codes))


def test_bf16_samples_codes_in_range():
    config = tiny_config()
    model = build(config).bfloat16()
    codes = sample(model, texts(config, 5, 2), texts(config, 3, seed=9), RANDOM)
    assert codes.shape == (2, config.num_codes) and codes.min() >= 0 and codes.max() < 32


@pytest.mark.slow
def test_compiled_steps_give_the_same_codes():
    # every scale is compiled by itself
    config = tiny_config(scales=(1, 2))
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, depth=1))
    model = build(config)
    text, negative = texts(config, 5, 2), texts(config, 3, seed=9)
    assert torch.equal(sample(model, text, negative, GREEDY, compile="step"), sample(model, text, negative, GREEDY))


def test_another_tokenizer_is_refused_by_both_names():
    model = build(tiny_config())
    for fields in ({"scales": (1, 3)}, {"codebook_size": 16}, {"code_width": 6}):
        other = build_quantizer(dataclasses.replace(model.config, **fields))
        name = next(iter(fields))
        with pytest.raises(ValueError, match=rf"generator of runs/mine expects {name} .* tokenizer runs/other has"):
            check_tokenizer(model.config, other.config, generator="of runs/mine", name="runs/other")

"""Top-k, top-p and the draw, against a reference that follows the definition token by token."""

import pytest
import torch

from tokenflow.generation.choosing import ImageStreams, choose, top_values
from tokenflow.generation.options import SamplingConfig


def kept_naively(logits: list[float], top_k: int, top_p: float) -> list[tuple[int, float]]:
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    limit = logits[order[top_k - 1]]
    order = [i for i in order if logits[i] >= limit]
    weights = torch.tensor([logits[i] for i in order]).softmax(0).tolist()
    kept, mass = [], 0.0
    for index, weight in zip(order, weights, strict=True):
        if kept and mass > top_p:
            break
        kept.append((index, weight))
        mass += weight
    return kept


@pytest.mark.parametrize(("top_k", "top_p"), [(40, 1.0), (12, 0.7), (5, 1.0), (40, 0.3), (2, 0.5), (3, 0.01)])
def test_choice_equals_the_definition(top_k, top_p):
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randn(2, 30, 40, generator=generator) * 2
    uniform = torch.rand(2, 30, generator=generator, dtype=torch.float64)
    codes = choose(logits, top_k=top_k, top_p=top_p, uniform=uniform)
    for row in range(2):
        for place in range(30):
            kept = kept_naively(logits[row, place].tolist(), top_k, top_p)
            threshold = float(uniform[row, place]) * sum(weight for _, weight in kept)
            mass, expected = 0.0, kept[-1][0]
            for index, weight in kept:
                mass += weight
                if mass > threshold:
                    expected = index
                    break
            assert codes[row, place] == expected


def test_codes_that_tie_with_the_last_of_top_k_stay():
    logits = torch.zeros(1, 1, 100)
    logits[..., 7] = 1.0
    uniforms = torch.linspace(0, 0.999, 400, dtype=torch.float64)
    chosen = {int(choose(logits, top_k=3, top_p=1.0, uniform=u.view(1, 1))) for u in uniforms}
    assert chosen == set(range(100))


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 0.9), (40, 0.0), (1, 0.0)])
def test_one_candidate_is_the_likeliest_code(top_k, top_p):
    logits = torch.randn(2, 5, 40)
    assert torch.equal(choose(logits, top_k=top_k, top_p=top_p, uniform=None), logits.argmax(-1))


@pytest.mark.parametrize(("size", "count"), [(4096, 1), (4096, 100), (4096, 1024), (4096, 1025), (4096, 4096), (99, 7)])
@pytest.mark.parametrize("distinct", [5, 10**6])
def test_the_highest_values_are_those_of_a_sorted_row_with_places_of_their_own(size, count, distinct):
    generator = torch.Generator().manual_seed(count)
    x = torch.randint(distinct, (2, 3, size), generator=generator).float()
    values, places = top_values(x, count)
    assert torch.equal(values, x.sort(dim=-1, descending=True).values[..., :count])
    assert torch.equal(x.gather(-1, places), values)
    assert all(len(set(row.tolist())) == count for row in places.flatten(0, 1))


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1, 20_000, 3)
    uniform = ImageStreams(seed=3, indices=[0]).uniform(20_000, device=torch.device("cpu"))
    codes = choose(logits, top_k=3, top_p=1.0, uniform=uniform)[0]
    torch.testing.assert_close(codes.bincount(minlength=3) / 20_000, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


def test_an_image_keeps_its_numbers_in_any_batch():
    device = torch.device("cpu")
    together = ImageStreams(seed=5, indices=[0, 1, 2])
    alone = ImageStreams(seed=5, indices=[2])
    for count in (1, 4, 9):
        assert torch.equal(together.uniform(count, device=device)[2], alone.uniform(count, device=device)[0])
    first = [ImageStreams(seed=s, indices=[i]).uniform(4, device=device) for s, i in ((5, 2), (5, 3), (6, 2))]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance": (1.0, -2.0)}, "numbers from 0"),
        ({"top_k": (5, 1)}, "one of each for every step"),
        ({"top_k": (0, 1, 1)}, "whole numbers from 1"),
        ({"top_p": (0.5, 1.5, 0.0)}, "expected 0 to 1"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)


def test_guidance_over_the_scales():
    assert SamplingConfig(guidance_scale=6.0).strengths(4) == (0.0, 2.0, 4.0, 6.0)
    assert SamplingConfig(guidance_scale=6.0, guidance="constant").strengths(2) == (6.0, 6.0)
    assert SamplingConfig(guidance_scale=2.0, guidance=(0.0, 1.5)).strengths(2) == (0.0, 3.0)
    with pytest.raises(ValueError, match="one for each of 3 scales"):
        SamplingConfig(guidance=(0.0, 1.5)).strengths(3)


def test_presets_fit_a_small_codebook_and_numbers_are_refused():
    assert SamplingConfig.named("three-step", codebook_size=256).top_k == (256, 100, 1)
    with pytest.raises(ValueError, match="has 256 codes"):
        SamplingConfig(top_k=(1200, 100, 1)).check(codebook_size=256)
    with pytest.raises(ValueError, match="single-step"):
        SamplingConfig.named("four-step", codebook_size=256)

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.two_processes import run_two_processes
from tokenflow.tokenizer.usage import CodebookUsage

SCALES = (1, 2)
LENGTH = 5


def codes(num_images, codebook_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codebook_size, (num_images, LENGTH), generator=generator)


def naive(indices, codebook_size):
    """Usage and perplexity of a set of codes, by counting."""
    values = [code for code in indices.flatten().tolist() if code >= 0]
    counts = [values.count(code) for code in set(values)]
    entropy = -sum(count / len(values) * math.log(count / len(values)) for count in counts)
    return len(counts) / codebook_size, math.exp(entropy)


def filled(batches, codebook_size=7, window=100, **options):
    usage = CodebookUsage(codebook_size, scales=SCALES, window=window, **options)
    for batch in batches:
        usage.update(batch)
    return usage


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    window=st.integers(1, 20),
    codebook_size=st.integers(1, 12),
    seed=st.integers(0, 100),
)
def test_window_holds_exactly_the_newest_images(sizes, window, codebook_size, seed):
    images = codes(sum(sizes), codebook_size, seed)
    figures = filled(images.split(sizes), codebook_size, window).compute()
    newest = images[-window:]
    usage, perplexity = naive(newest, codebook_size)
    assert figures["usage"] == pytest.approx(usage)
    assert figures["perplexity"] == pytest.approx(perplexity)
    assert figures["tokens"] == newest.numel()
    assert figures["dead_codes"] == codebook_size - len(newest.unique())
    for scale, part in zip(SCALES, newest.split([1, 4], dim=1), strict=True):
        usage, perplexity = naive(part, codebook_size)
        assert figures[f"usage/scale_{scale}"] == pytest.approx(usage)
        assert figures[f"perplexity/scale_{scale}"] == pytest.approx(perplexity)


def test_code_zero_counts_only_when_it_is_used():
    assert filled([torch.full((3, LENGTH), 2)], 4).compute()["usage"] == 0.25
    assert CodebookUsage(4, scales=SCALES, window=3).compute()["usage"] == 0.0


def test_dropped_scale_is_not_counted():
    dropped = torch.tensor([[3, -1, -1, -1, -1]])
    figures = filled([dropped], 4).compute()
    assert figures["usage"] == 0.25
    assert figures["tokens"] == 1
    assert figures["usage/scale_2"] == 0.0
    assert filled([dropped, torch.ones(1, LENGTH, dtype=torch.long)], 4, window=1).compute()["tokens"] == 5


def test_codes_beyond_131072_and_beyond_half_precision_stay_distinct():
    codebook_size = 300_000
    images = torch.arange(299_000, 300_000).view(-1, LENGTH)
    figures = filled([images], codebook_size, window=1000).compute()
    assert figures["usage"] == 1000 / codebook_size
    assert figures["perplexity"] == pytest.approx(1000)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_any_integer_type_of_codes(dtype):
    images = codes(6, 7)
    assert filled([images.to(dtype)]).compute() == filled([images]).compute()


def test_later_changes_of_the_callers_tensor_do_not_matter():
    images = codes(4, 7).int()
    usage = filled([images], window=4)
    expected = filled([images.clone(), codes(2, 7, seed=1)], window=4).compute()
    images.zero_()
    usage.update(codes(2, 7, seed=1))
    assert usage.compute() == expected


@pytest.mark.parametrize("world_size", [2, 3])
def test_figures_do_not_depend_on_the_world_size(world_size):
    steps = [codes(6, 50, seed) for seed in range(5)]
    expected = filled(steps, 50, window=12).compute()
    ranks = [
        filled([step.chunk(world_size)[rank] for step in steps], 50, window=12 // world_size)
        for rank in range(world_size)
    ]
    total = sum(rank._counts for rank in ranks)
    for rank in ranks:
        rank.all_reduce = lambda counts: total
        assert rank.compute() == expected


def _count_on_rank(rank, all_reduce_sum):
    steps = [codes(6, 50, seed) for seed in range(5)]
    return filled([step.chunk(2)[rank] for step in steps], 50, window=6, all_reduce=all_reduce_sum).compute()


def test_two_processes_on_gloo_report_what_one_would(tmp_path):
    expected = filled([codes(6, 50, seed) for seed in range(5)], 50, window=12).compute()
    assert run_two_processes(_count_on_rank, tmp_path) == [expected, expected]


def test_compute_leaves_the_counts_alone():
    usage = filled([codes(6, 7)], all_reduce=lambda counts: counts.mul_(2))
    assert usage.compute() == usage.compute()


def test_saved_window_goes_on_as_if_unbroken():
    batches = [codes(3, 7, seed) for seed in range(6)]
    unbroken = filled(batches, window=8)
    first = filled(batches[:3], window=8)
    resumed = CodebookUsage(7, scales=SCALES, window=8)
    resumed.update(codes(2, 7, seed=99))  # forgotten on load
    resumed.load_state_dict(first.state_dict())
    for batch in batches[3:]:
        resumed.update(batch)
    assert resumed.compute() == unbroken.compute()
    empty = CodebookUsage(7, scales=SCALES, window=8)
    resumed.load_state_dict(empty.state_dict())
    assert resumed.compute() == empty.compute()


def test_alarm_names_the_dead_codes_of_a_collapsed_book():
    usage = filled([torch.randint(5, (200, LENGTH))], 100, window=200)
    message = usage.alarm(usage.compute())
    assert "95 of 100 codes" in message
    assert "commitment_weight" in message


def test_alarm_is_silent_for_even_codes_a_short_window_and_an_empty_one():
    even = filled([torch.randint(100, (200, LENGTH))], 100, window=200)
    assert even.alarm(even.compute()) is None
    short = filled([torch.randint(100_000, (4, LENGTH))], 100_000, window=200)
    assert short.compute()["usage"] < 0.001
    assert short.alarm(short.compute()) is None
    empty = CodebookUsage(100, scales=SCALES, window=200)
    assert empty.alarm(empty.compute()) is None


def test_wrong_length_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"expected \[B, 5\]"):
        filled([torch.zeros(2, 6, dtype=torch.long)])
    with pytest.raises(ValueError, match="window"):
        CodebookUsage(7, scales=SCALES, window=0)

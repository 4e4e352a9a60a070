import pytest
import torch

from tokenflow.evaluation.codebook import CodeHistogram, perplexity


def test_usage_and_perplexity_equal_a_count_by_hand():
    codes = torch.tensor([[3, 0, 0, 1, 1], [3, 0, 1, 2, 2]])
    histogram = CodeHistogram(8, (1, 2))
    histogram.update(codes)
    measured = histogram.compute()
    assert measured["usage"] == 4 / 8
    assert measured["usage/scale_1"] == 1 / 8
    assert measured["perplexity/scale_1"] == pytest.approx(1.0)
    share = torch.tensor([3, 3, 2]) / 8
    assert measured["perplexity/scale_2"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())))


def test_perplexity_of_even_use_is_the_number_of_codes():
    assert perplexity(torch.full((32,), 5)) == pytest.approx(32)
    assert perplexity(torch.zeros(32)) == 0.0


def test_counts_add_over_ranks_and_leave_padding_out():
    codes = torch.randint(0, 16, (6, 5))
    whole, first, second = (CodeHistogram(16, (1, 2)) for _ in range(3))
    whole.update(codes)
    first.update(codes[:4])
    second.update(codes[[4, 5, 5]], torch.tensor([True, True, False]))
    merged = first.histogram(lambda tensor: tensor + second.counts)
    assert torch.equal(merged, whole.histogram())
    assert first.compute(lambda tensor: tensor + second.counts) == whole.compute()


def test_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"\[images, 5\]"):
        CodeHistogram(16, (1, 2)).update(torch.zeros(2, 6, dtype=torch.int64))

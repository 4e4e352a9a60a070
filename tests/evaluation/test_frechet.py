import numpy as np
import pytest
import scipy.linalg
import torch

from tokenflow.evaluation.frechet import (
    FrechetDistance,
    GaussianStatistics,
    frechet_distance,
    sample_warning,
    teacher_features,
)


def covariance(seed: int, width: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(width, rank or 2 * width, generator=generator, dtype=torch.float64)
    return factor @ factor.T / width


def test_equals_the_closed_form_of_commuting_gaussians():
    a, b = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([9.0, 1.0, 0.0])
    mean_a, mean_b = torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])
    expected = float((mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    for turn in (torch.eye(3, dtype=torch.float64), rotation):
        measured = frechet_distance(
            turn @ mean_a.double(),
            turn @ a.diag().double() @ turn.T,
            turn @ mean_b.double(),
            turn @ b.diag().double() @ turn.T,
        )
        assert measured == pytest.approx(expected, abs=1e-6)


def test_equals_scipy_matrix_root():
    a, b = covariance(0, 24), covariance(1, 24)
    mean_a, mean_b = torch.randn(24, dtype=torch.float64), torch.randn(24, dtype=torch.float64)
    root = scipy.linalg.sqrtm((a @ b).numpy()).real
    expected = float((mean_a - mean_b).square().sum() + a.trace() + b.trace()) - 2 * np.trace(root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-9)


def test_is_symmetric_and_zero_for_equal_sets_also_when_singular():
    a, b = covariance(2, 20, rank=4), covariance(3, 20, rank=7)
    mean = torch.zeros(20, dtype=torch.float64)
    assert frechet_distance(mean, a, mean, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(mean, a, mean, b) == pytest.approx(frechet_distance(mean, b, mean, a), rel=1e-6)


def test_streamed_statistics_equal_numpy_over_batches_and_ranks():
    features = torch.randn(50, 6) * 3 + 5
    ranks = [GaussianStatistics(), GaussianStatistics()]
    for start in range(0, 50, 7):
        ranks[start // 7 % 2].update(features[start : start + 7])
    queue = [ranks[1].count, ranks[1].sum, ranks[1].outer]
    mean, measured, count = ranks[0].compute(lambda tensor: tensor + queue.pop(0))
    assert count == 50
    np.testing.assert_allclose(mean.numpy(), features.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(measured.numpy(), np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)


def test_padding_does_not_count():
    def features(images):
        return images.flatten(1)[:, :4]

    original, reconstruction = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    whole, padded = FrechetDistance(features), FrechetDistance(features)
    whole.update(original, reconstruction)
    padded.update(original[:4], reconstruction[:4])
    again = [4, 5, 0, 0]
    padded.update(original[again], reconstruction[again], torch.tensor([True, True, False, False]))
    assert padded.compute()[0] == pytest.approx(whole.compute()[0], rel=1e-9)


def test_saved_sums_continue():
    def features(images):
        return images.flatten(1)[:, :4]

    original, reconstruction = torch.randn(9, 3, 4, 4), torch.randn(9, 3, 4, 4)
    whole, first, second = (FrechetDistance(features) for _ in range(3))
    whole.update(original, reconstruction)
    first.update(original[:5], reconstruction[:5])
    second.load_state_dict(first.state_dict())
    second.update(original[5:], reconstruction[5:])
    assert second.compute()[0] == pytest.approx(whole.compute()[0], rel=1e-9)


def test_few_samples_are_warned_about():
    assert "singular" in sample_warning(64, 64)
    assert "50000" in sample_warning(5000, 2048)
    assert sample_warning(50_000, 2048) is None


def test_one_image_has_no_covariance():
    statistics = GaussianStatistics()
    statistics.update(torch.randn(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        statistics.compute()
    with pytest.raises(ValueError, match="finite"):
        statistics.update(torch.tensor([[1.0, float("inf"), 0.0]]))


def test_teacher_feature_is_the_mean_token():
    tokens = torch.randn(2, 5, 7)
    assert torch.equal(teacher_features(lambda images: tokens)(torch.zeros(2, 3, 8, 8)), tokens.mean(1))

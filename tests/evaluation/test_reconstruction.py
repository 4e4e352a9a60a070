import numpy as np
import pytest
import torch

from tokenflow.evaluation.measure import NOT_MEASURED, Mean, NotMeasured
from tokenflow.evaluation.reconstruction import (
    PSNR_CEILING,
    ReconstructionMetrics,
    high_frequency_error,
    psnr,
    reconstruct_uint8,
    ssim,
)

metrics = pytest.importorskip("skimage.metrics")


def pictures(seed: int, *, count: int = 5, height: int = 33, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    original = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 255
    noise = torch.randn(original.shape, generator=generator) * torch.linspace(1, 40, count).view(-1, 1, 1, 1)
    return original.round().to(torch.uint8), (original + noise).round().clamp(0, 255).to(torch.uint8)


def numpy_pictures(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def test_a_loaded_picture_survives_round_for_every_grey_level():
    levels = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16)
    for images in (levels / 127.5 - 1, (levels / 255 - 0.5) / 0.5):
        assert torch.equal(reconstruct_uint8(images, "round"), levels.to(torch.uint8))


def test_rounding_conventions_differ_as_documented():
    images = torch.tensor([-2.0, -1.0, 0.0, 0.0039, 0.9999, 1.0, 2.0]).view(1, 1, 1, 7)
    assert reconstruct_uint8(images, "trunc").flatten().tolist() == [0, 0, 128, 128, 255, 255, 255]
    assert reconstruct_uint8(images, "floor").flatten().tolist() == [0, 0, 127, 127, 254, 255, 255]
    assert reconstruct_uint8(images, "round").flatten().tolist() == [0, 0, 128, 128, 255, 255, 255]


def test_floor_loses_grey_levels_of_a_loaded_picture():
    levels = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16)
    floored = reconstruct_uint8((levels / 255 - 0.5) / 0.5, "floor")
    lost = levels.to(torch.int64) - floored.to(torch.int64)
    assert set(lost.flatten().tolist()) == {0, 1}
    assert int(lost.sum()) == 63


def test_rounding_names_are_checked_and_nan_is_refused():
    with pytest.raises(ValueError, match="round, trunc, floor"):
        reconstruct_uint8(torch.zeros(1, 3, 8, 8), "nearest")
    with pytest.raises(ValueError, match="NaN"):
        reconstruct_uint8(torch.full((1, 3, 8, 8), float("nan")))


def test_psnr_equals_scikit_image():
    original, reconstruction = pictures(0)
    expected = [
        metrics.peak_signal_noise_ratio(a, b, data_range=255)
        for a, b in zip(numpy_pictures(original), numpy_pictures(reconstruction), strict=True)
    ]
    np.testing.assert_allclose(psnr(original, reconstruction).numpy(), expected, rtol=1e-12)


def test_psnr_of_identical_pictures_is_the_ceiling():
    original, _ = pictures(1)
    assert psnr(original, original).tolist() == pytest.approx([PSNR_CEILING] * len(original), abs=1e-9)


def test_ssim_equals_scikit_image_default():
    original, reconstruction = pictures(2)
    expected = [
        metrics.structural_similarity(a, b, data_range=255, channel_axis=-1)
        for a, b in zip(numpy_pictures(original), numpy_pictures(reconstruction), strict=True)
    ]
    np.testing.assert_allclose(ssim(original, reconstruction).numpy(), expected, atol=1e-9)


def test_ssim_authors_equals_scikit_image_with_data_range_two_on_unit_pictures():
    original, reconstruction = pictures(3)
    expected = [
        metrics.structural_similarity(a / 255.0, b / 255.0, data_range=2.0, channel_axis=-1)
        for a, b in zip(numpy_pictures(original), numpy_pictures(reconstruction), strict=True)
    ]
    measured = ReconstructionMetrics()
    measured.update(original, reconstruction)
    assert measured.compute()["ssim_authors"] == pytest.approx(np.mean(expected), abs=1e-8)
    assert measured.compute()["ssim_authors"] > measured.compute()["ssim"]


def test_ssim_needs_a_whole_window():
    with pytest.raises(ValueError, match="7x7"):
        ssim(torch.zeros(1, 3, 6, 9), torch.zeros(1, 3, 6, 9))


def test_high_frequency_error_sees_noise_and_not_a_change_of_brightness():
    original = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    checks = original + 8 * ((torch.arange(16).view(-1, 1) + torch.arange(16)) % 2).to(torch.uint8)
    assert float(high_frequency_error(original, original + 30)) == pytest.approx(0, abs=1e-9)
    assert float(high_frequency_error(original, checks)) > 3.5


def test_metrics_do_not_depend_on_batches_padding_or_ranks():
    original, reconstruction = pictures(4, count=7)
    whole = ReconstructionMetrics()
    whole.update(original, reconstruction)

    ranks = [ReconstructionMetrics(), ReconstructionMetrics()]
    for rank, indices, padding in ((0, [0, 2, 4], 0), (1, [1, 3, 5], 0), (0, [6, 0, 0], 2), (1, [6, 6, 6], 3)):
        valid = torch.arange(3) < 3 - padding
        ranks[rank].update(original[indices], reconstruction[indices], valid)
    states = {name: [rank.means[name].state for rank in ranks] for name in ranks[0].means}
    summed = {name: sum(pair) for name, pair in states.items()}
    assert {name: mean.state.tolist() for name, mean in whole.means.items()} == {
        name: state.tolist() for name, state in summed.items()
    }

    queue = [state[1] for state in states.values()]
    assert ranks[0].compute(all_reduce=lambda tensor: tensor + queue.pop(0)) == whole.compute()


def test_mean_is_exact_in_any_order():
    values = torch.rand(1000, dtype=torch.float64) * 100
    forward, backward = Mean(), Mean()
    for value in values:
        forward.update(value[None])
    backward.update(values.flip(0))
    assert forward.state.tolist() == backward.state.tolist()
    assert forward.compute() == pytest.approx(float(values.mean()), abs=1e-8)


def test_mean_of_nothing_and_of_nan_are_errors():
    with pytest.raises(ValueError, match="no images"):
        Mean().compute()
    with pytest.raises(ValueError, match="non-finite"):
        Mean().update(torch.tensor([1.0, float("nan")]))


def test_lpips_is_not_measured_without_weights_and_averaged_with_them():
    original, reconstruction = pictures(5)
    without = ReconstructionMetrics(NotMeasured("no weights"))
    without.update(original, reconstruction)
    assert without.compute()["lpips"] == NOT_MEASURED

    def distance(a, b):
        assert a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    measured = ReconstructionMetrics(distance)
    measured.update(original, reconstruction)
    expected = float((original.float() - reconstruction.float()).abs().mean()) / 127.5
    assert measured.compute()["lpips"] == pytest.approx(expected, rel=1e-5)


def test_wrong_inputs_are_named():
    original, reconstruction = pictures(6)
    with pytest.raises(ValueError, match="equal shapes"):
        ReconstructionMetrics().update(original, reconstruction[:, :, :-1])
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        ReconstructionMetrics().update(original.float(), reconstruction)


def test_saved_sums_continue():
    original, reconstruction = pictures(7)
    first, second, whole = ReconstructionMetrics(), ReconstructionMetrics(), ReconstructionMetrics()
    first.update(original[:2], reconstruction[:2])
    second.load_state_dict(first.state_dict())
    second.update(original[2:], reconstruction[2:])
    whole.update(original, reconstruction)
    assert second.compute() == whole.compute()
    with pytest.raises(ValueError, match="same settings"):
        ReconstructionMetrics(lambda a, b: a).load_state_dict(first.state_dict())

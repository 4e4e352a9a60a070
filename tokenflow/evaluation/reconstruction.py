"""How close reconstructions are to their originals: PSNR, SSIM in two conventions, LPIPS, fine detail.

Published numbers of tokenizers differ by convention as much as by model (data range of SSIM, rounding, crop), so every
choice is pinned and named here: pictures are compared as the uint8 pictures a user would save, PSNR and SSIM
are averaged over images, and a padded last batch is masked so that no image counts twice.

Legend: B images, C channels, H height, W width.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.evaluation.measure import NOT_MEASURED, AllReduce, Mean, NotMeasured

Rounding = Literal["round", "trunc", "floor"]
"""How [-1, 1] becomes 0..255. `round`: nearest of 127.5 x + 127.5, ties to even, so a loaded uint8 picture comes back
unchanged. `trunc`: floor of 127.5 x + 128, what the authors save for reconstructions (ties upwards). `floor`: floor of
(x + 1) / 2 * 255, as the authors' script does to the ground truth; in float32 it takes one level off 63 of the 256 grey
levels of a loaded picture, so use it only to reproduce their figures."""

PSNR_CEILING = 100.0
"""Identical pictures have infinite PSNR; a mean needs a number."""

SSIM_WINDOW = 7
Perceptual = Callable[[Tensor, Tensor], Tensor]


def reconstruct_uint8(images: Tensor, rounding: Rounding = "round") -> Tensor:
    """Images float [B, C, H, W] in [-1, 1] (values outside are clamped) to uint8 [B, C, H, W]."""
    images = images.detach().float()
    if rounding == "round":
        levels = torch.round(images * 127.5 + 127.5)
    elif rounding == "trunc":
        levels = torch.floor(images * 127.5 + 128.0)
    elif rounding == "floor":
        levels = torch.floor((images + 1) / 2 * 255)
    else:
        raise ValueError(f"rounding is {rounding!r}, expected one of {', '.join(get_args(Rounding))}")
    if not bool(torch.isfinite(levels).all()):
        raise ValueError("the images hold NaN or infinity, expected numbers in [-1, 1]; look for a diverged model")
    return levels.clamp(0, 255).to(torch.uint8)


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 [B, C, H, W], one value an image [B]; at most `PSNR_CEILING`."""
    squared_error = (original.double() - reconstruction.double()).square().mean(dim=(1, 2, 3))
    smallest = 255.0**2 / 10 ** (PSNR_CEILING / 10)
    return 10 * torch.log10(255.0**2 / squared_error.clamp_min(smallest))


def ssim(original: Tensor, reconstruction: Tensor, *, data_range: float = 255.0) -> Tensor:
    """Structural similarity of [B, C, H, W], one value an image [B]; equals scikit-image's default.

    That is: 7x7 uniform window, sample covariance, K1 = 0.01, K2 = 0.03, mean over the pixels whose window lies
    inside, then over channels. The pictures must be at least 7x7.
    """
    return _ssim_from(_local_moments(original.double(), reconstruction.double()), data_range=data_range)


def _local_moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Products of means, sums of squared means, covariances and sums of variances in each window."""
    if min(x.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"images are {tuple(x.shape[-2:])}, expected at least {SSIM_WINDOW}x{SSIM_WINDOW}")
    mean_x, mean_y, squares, product = F.avg_pool2d(
        torch.stack([x, y, x * x + y * y, x * y]).flatten(0, 1), SSIM_WINDOW, stride=1
    ).chunk(4)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_squares = mean_x * mean_x + mean_y * mean_y
    return mean_x * mean_y, mean_squares, unbiased * (product - mean_x * mean_y), unbiased * (squares - mean_squares)


def _ssim_from(moments: tuple[Tensor, Tensor, Tensor, Tensor], *, data_range: float) -> Tensor:
    mean_product, mean_squares, covariance, variances = moments
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_product + c1) * (2 * covariance + c2) / ((mean_squares + c1) * (variances + c2))
    return similarity.mean(dim=(1, 2, 3))


def high_frequency_error(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Error in fine detail, one value an image [B], in grey levels of 255: lower is better.

    Root mean square of the high-pass part of the difference (the difference minus its 5x5 binomial blur): what a
    sharper decoder lowers and a blurry one leaves.
    """
    difference = original.double() - reconstruction.double()
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64, device=difference.device) / 16
    channels = difference.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 5, 5)
    blurred = F.conv2d(F.pad(difference, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)
    return (difference - blurred).square().mean(dim=(1, 2, 3)).sqrt()


class ReconstructionMetrics:
    """Streaming PSNR, SSIM, LPIPS and detail error over pairs of uint8 pictures, equal for every split into ranks.

    `perceptual` takes two float images [B, 3, H, W] in [-1, 1] and returns a distance [B] (or [B, 1, 1, 1]); give
    `NotMeasured(reason)` or None where LPIPS weights are not at hand.
    """

    def __init__(self, perceptual: Perceptual | NotMeasured | None = None) -> None:
        self.perceptual = perceptual if callable(perceptual) else None
        names = ["psnr", "ssim", "ssim_authors", "high_frequency_error"]
        self.means = {name: Mean() for name in [*names, *(["lpips"] if self.perceptual else [])]}

    @torch.no_grad()
    def update(self, original: Tensor, reconstruction: Tensor, valid: Tensor | None = None) -> None:
        """Add uint8 [B, 3, H, W] pairs; `valid` bool [B] is False for the padding of a last batch."""
        if original.shape != reconstruction.shape:
            raise ValueError(
                f"original is {tuple(original.shape)} and reconstruction {tuple(reconstruction.shape)}, expected equal "
                "shapes; resize the originals to the tokenizer's image_size"
            )
        for name, images in (("original", original), ("reconstruction", reconstruction)):
            if images.dtype != torch.uint8:
                raise ValueError(f"{name} is {images.dtype}, expected torch.uint8; see reconstruct_uint8")
        if valid is not None:
            keep = valid.to(original.device, torch.bool)
            original, reconstruction = original[keep], reconstruction[keep]
        if original.shape[0] == 0:
            return
        self.means["psnr"].update(psnr(original, reconstruction))
        moments = _local_moments(original.double(), reconstruction.double())
        self.means["ssim"].update(_ssim_from(moments, data_range=255.0))
        # The authors pass data_range=2 for pictures in [0, 1], which is 510 for pictures in 0..255.
        self.means["ssim_authors"].update(_ssim_from(moments, data_range=510.0))
        self.means["high_frequency_error"].update(high_frequency_error(original, reconstruction))
        if self.perceptual is not None:
            distance = self.perceptual(original.float() / 127.5 - 1, reconstruction.float() / 127.5 - 1)
            self.means["lpips"].update(distance.reshape(original.shape[0]))

    def compute(self, all_reduce: AllReduce | None = None) -> dict[str, float | str]:
        """Mean of each measure over all images of all ranks; `lpips` is "not measured" without its weights."""
        metrics: dict[str, float | str] = {name: mean.compute(all_reduce) for name, mean in self.means.items()}
        metrics.setdefault("lpips", NOT_MEASURED)
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """The integer sums, for an evaluation that is to be continued."""
        return {name: mean.state.clone() for name, mean in self.means.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`; the measures must be the same."""
        if state.keys() != self.means.keys():
            raise ValueError(
                f"saved measures {sorted(state)} differ from {sorted(self.means)}; continue with the same settings"
            )
        for name, value in state.items():
            self.means[name].state = value.clone()

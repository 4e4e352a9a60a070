"""Frechet distance between two sets of pictures, streamed: only sums are kept, whatever the number of pictures.

`frechet_teacher` is taken in the feature space of the tokenizer's own teacher, so it needs no further weights; it is
NOT an FID and is never called one. `rfid` is the usual FID (Inception-v3 of 2015, pool features) between
originals and reconstructions, measured when those weights are at hand.

Legend: B images, D feature width, N tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenflow.evaluation.measure import AllReduce, reduced

Features = Callable[[Tensor], Tensor]


class GaussianStatistics:
    """Mean and covariance of feature vectors in float64, from sums that add over batches and ranks."""

    def __init__(self) -> None:
        self.count = torch.zeros(1, dtype=torch.int64)
        self.sum: Tensor | None = None
        self.outer: Tensor | None = None

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add features [B, D]."""
        features = features.detach().double()
        if features.ndim != 2:
            raise ValueError(f"features are {tuple(features.shape)}, expected [images, width]")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold NaN or infinity, expected finite numbers; check the feature network")
        if self.sum is None:
            width = features.shape[1]
            self.sum = features.new_zeros(width)
            self.outer = features.new_zeros(width, width)
        self.count += features.shape[0]
        self.sum += features.sum(0).to(self.sum.device)
        self.outer += (features.T @ features).to(self.outer.device)

    def compute(self, all_reduce: AllReduce | None = None) -> tuple[Tensor, Tensor, int]:
        """Mean [D], unbiased covariance [D, D] and number of images, over all ranks."""
        count = int(reduced(self.count, all_reduce))
        if count < 2 or self.sum is None:
            raise ValueError(f"got {count} images, expected at least 2 for a covariance; evaluate more images")
        mean = reduced(self.sum, all_reduce) / count
        outer = reduced(self.outer, all_reduce)
        covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
        return mean, (covariance + covariance.T) / 2, count

    def state_dict(self) -> dict[str, Tensor | None]:
        """The sums, for an evaluation that is to be continued."""
        return {"count": self.count.clone(), "sum": self.sum, "outer": self.outer}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Continue from `state_dict()`."""
        self.count, self.sum, self.outer = state["count"].clone(), state["sum"], state["outer"]


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Frechet distance |ma - mb|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians, in float64.

    The trace of the root is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: two symmetric eigenproblems, no
    complex numbers, and no ridge to add when there are fewer images than features.
    """
    a, b = covariance_a.double(), covariance_b.double()
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ b @ root
    trace_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * trace_root
    return max(float(distance), 0.0)


class FrechetDistance:
    """Streaming Frechet distance between originals and reconstructions in one feature space."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.original = GaussianStatistics()
        self.reconstruction = GaussianStatistics()

    @torch.no_grad()
    def update(self, original: Tensor, reconstruction: Tensor, valid: Tensor | None = None) -> None:
        """Add pairs of pictures [B, 3, H, W]; `valid` bool [B] is False for the padding of a last batch."""
        for statistics, images in ((self.original, original), (self.reconstruction, reconstruction)):
            features = self.features(images)
            statistics.update(features if valid is None else features[valid.to(features.device, torch.bool)])

    def compute(self, all_reduce: AllReduce | None = None) -> tuple[float, str | None]:
        """The distance, and a warning when there are too few images to compare it with anything."""
        mean_a, covariance_a, count = self.original.compute(all_reduce)
        mean_b, covariance_b, _ = self.reconstruction.compute(all_reduce)
        return frechet_distance(mean_a, covariance_a, mean_b, covariance_b), sample_warning(count, mean_a.numel())

    def state_dict(self) -> dict[str, dict[str, Tensor | None]]:
        """The sums, for an evaluation that is to be continued."""
        return {"original": self.original.state_dict(), "reconstruction": self.reconstruction.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor | None]]) -> None:
        """Continue from `state_dict()`."""
        self.original.load_state_dict(state["original"])
        self.reconstruction.load_state_dict(state["reconstruction"])


def sample_warning(count: int, width: int) -> str | None:
    """Why a Frechet distance over `count` images of `width` features is not to be compared, or None."""
    if count <= width:
        return (
            f"{count} images in {width} dimensions: the covariance is singular and the distance biased; "
            f"compare only runs over the same {count} images"
        )
    if count < 10_000:
        return f"{count} images: biased by sample size; published figures use 50000"
    return None


def teacher_features(teacher: Callable[[Tensor], Tensor]) -> Features:
    """The feature of a picture under a teacher: the mean over its tokens. Teacher: [B, 3, H, W] -> [B, N, D]."""

    def features(images: Tensor) -> Tensor:
        tokens = teacher(images)
        return tokens.float().mean(dim=1) if tokens.ndim == 3 else tokens.float()

    return features

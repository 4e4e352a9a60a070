"""What stages 1 and 2 share: equation 4 on reconstructed pictures, the discriminator's step, PSNR on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenflow.data import DataConfig, EvaluationBatches, SourceConfig
from tokenflow.tokenizer.discriminators import build_discriminator
from tokenflow.tokenizer.losses import (
    TokenizerLossConfig,
    adaptive_weight,
    adversarial_weight,
    build_perceptual_loss,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)
from tokenflow.tokenizer.teachers import Teacher
from tokenflow.train import Engine, OptimizerConfig, TrainConfig, distributed, frozen

DISCRIMINATOR = "discriminator"


def discriminator_engine(
    loss: TokenizerLossConfig, *, image_size: int, optimizer: OptimizerConfig, **common: Any
) -> dict[str, Engine]:
    """The discriminator's engine under its name, or nothing where the loss has none. Every rank calls it."""
    if loss.discriminator == "none":
        return {}
    engine = Engine(
        lambda: build_discriminator(
            loss.discriminator,
            image_size=image_size,
            channels=loss.discriminator_channels,
            layers=loss.discriminator_layers,
        ),
        name=DISCRIMINATOR,
        optimizer=optimizer,
        **common,
    )
    return {DISCRIMINATOR: engine}


class PictureRecipe(Protocol):
    """What a recipe says about pictures and batches."""

    data: DataConfig
    train: TrainConfig
    evaluation_sources: tuple[SourceConfig, ...]
    evaluation_images: int


def evaluation_batches(recipe: PictureRecipe) -> EvaluationBatches:
    """This rank's pictures for evaluations during training: `evaluation_sources`, else the first training ones."""
    sources = recipe.evaluation_sources or recipe.data.sources
    return EvaluationBatches(
        dataclasses.replace(recipe.data, sources=sources, records=False, num_workers=0),
        at_most=recipe.evaluation_images,
        batch_size=recipe.train.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


class PixelObjective:
    """L_pix = l2 + L_P + lambda_G L_G (equation 4), taken at the picture, and the discriminator's own loss."""

    def __init__(self, loss: TokenizerLossConfig, *, teacher: Teacher | None, device: torch.device) -> None:
        """Load the frozen perceptual network.

        Args:
            loss: Which terms with what weights.
            teacher: Gives the feature maps of the `teacher` perceptual loss; unused otherwise.
            device: Where to compute.
        """
        self.loss = loss
        perceptual = build_perceptual_loss(loss, feature_maps=None if teacher is None else teacher.feature_maps)
        self.perceptual = None if perceptual is None else perceptual.to(device)

    def gradient(
        self, reconstruction: Tensor, images: Tensor, discriminator: Engine | None, step: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """(gradient of L_pix at the picture, its weighted terms, further metrics).

        The picture is cut off as a leaf: each network behind it is passed backward once and by itself, and only
        `backward` reaches the engine's output. DeepSpeed needs the second, ZeRO-3 the first.
        """
        loss = self.loss
        with torch.enable_grad():
            picture = reconstruction.detach().requires_grad_()
            terms = {"reconstruction": loss.reconstruction_weight * reconstruction_loss(picture, images)}
            if self.perceptual is not None and loss.perceptual_weight > 0:
                terms["perceptual"] = loss.perceptual_weight * self.perceptual(picture, images)
            (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), picture)
            # Left out while its weight is 0, not multiplied by it: 0 x NaN is NaN.
            weight = adversarial_weight(step, loss)
            if discriminator is None or weight == 0:
                return gradient, terms, {}
            with frozen(discriminator) as module, discriminator.autocast():
                bare = generator_loss(module.network(picture), kind=loss.adversarial)
                (push,) = torch.autograd.grad(bare, picture)
        metrics = {"generator": bare}
        if loss.adaptive_adversarial_weight:
            metrics["adaptive_weight"] = adaptive_weight(gradient, push)
            weight = weight * metrics["adaptive_weight"]
        return gradient + weight * push, terms | {"adversarial": weight * bare}, metrics

    def train_discriminator(
        self, discriminator: Engine | None, images: Tensor, reconstruction: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Forward and backward of the discriminator from its first step on; its loss as a metric."""
        if discriminator is None or step < self.loss.discriminator_start:
            return {}
        real, fake = discriminator(images, reconstruction.detach())
        loss = discriminator_loss(real, fake, kind=self.loss.adversarial)
        discriminator.backward(loss)
        return {DISCRIMINATOR: loss}


@torch.no_grad()
def mean_psnr(
    reconstruct: Callable[[Tensor], Tensor], batches: Iterable[Mapping[str, Any]], *, device: torch.device
) -> tuple[float, tuple[Tensor, Tensor] | None]:
    """(mean PSNR over all ranks, this rank's first originals and reconstructions). Every rank calls it.

    Args:
        reconstruct: Images [B, 3, S, S] to their reconstructions, unclamped or not.
        batches: This rank's batches with `images` and `mask` (False for padding).
        device: Where to compute.
    """
    total, count, shown = torch.zeros((), device=device), 0, None
    for batch in batches:
        images, mask = batch["images"].to(device), batch["mask"].to(device)
        reconstruction = reconstruct(images).clamp(-1, 1)
        total += (per_image_psnr(reconstruction, images) * mask).sum()
        count += int(mask.sum())
        if shown is None and mask.any():
            shown = images[mask], reconstruction[mask]
    sums = distributed.sum_over_ranks(torch.tensor([float(total), float(count)], device=device))
    return float(sums[0] / sums[1].clamp_min(1)), shown


def per_image_psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB of float images [B, 3, S, S] in [-1, 1], unrounded: [B]. For curves; results round to uint8."""
    error = (reconstruction.float().clamp(-1, 1) - images.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def batch_psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean of `per_image_psnr` over a batch, without gradients: scalar."""
    with torch.no_grad():
        return per_image_psnr(reconstruction, images).mean()

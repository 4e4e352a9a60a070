"""Stage 1: one step of a TokenFlow tokenizer (paper, section 3.2).

L_total = L_sem + L_VQ + L_pix, with L_pix = l2 + L_P + lambda_G L_G (equation 4). The tokenizer and the discriminator
are two engines; teacher and perceptual network are frozen and live outside both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenflow.config import Launch
from tokenflow.data import to_uint8
from tokenflow.evaluation.blank_pictures import constant_image_alarm
from tokenflow.evaluation.grid import reconstruction_grid
from tokenflow.tasks.pixels import DISCRIMINATOR, PixelObjective, batch_psnr, discriminator_engine, mean_psnr
from tokenflow.tasks.stage import engine_options
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.tokenizer.losses import semantic_loss
from tokenflow.tokenizer.model import TokenFlowTokenizer, TokenizerOutput
from tokenflow.tokenizer.quantizer import draw_dropped_scale
from tokenflow.tokenizer.teachers import Teacher, build_teacher
from tokenflow.tokenizer.usage import CodebookUsage
from tokenflow.train import (
    Engine,
    Engines,
    EvalResult,
    Metrics,
    TrainState,
    distributed,
)

logger = logging.getLogger(__name__)

GENERATOR = "tokenizer"


def build_engines(recipe: TokenizerRecipe, launch: Launch) -> Engines:
    """The tokenizer's engine and, unless the loss has none, the discriminator's. Every rank calls it."""
    config = recipe.model.config()
    common = engine_options(recipe, launch)
    build = TokenFlowTokenizer.build if launch.init_from is None else TokenFlowTokenizer
    tokenizer = Engine(
        lambda: build(config),
        name=GENERATOR,
        optimizer=recipe.optimizer,
        ema_decay=recipe.train.ema_decay,
        weights=launch.init_from,
        **common,
    )
    adversary = discriminator_engine(
        recipe.loss, image_size=config.image_size, optimizer=recipe.discriminator_optimizer, **common
    )
    return {GENERATOR: tokenizer, **adversary}


def export(recipe: TokenizerRecipe, engines: Engines, directory: Path) -> None:
    """Write the tokenizer, with averaged weights if there are any, for `from_pretrained`. Every rank calls it."""
    weights = engines[GENERATOR].gathered_average()
    if not distributed.is_main_process():
        return
    tokenizer = TokenFlowTokenizer(recipe.model.config())
    tokenizer.load_state_dict(weights)
    tokenizer.teacher = recipe.teacher.config(recipe.model.preset)
    tokenizer.save_pretrained(directory)
    logger.info("tokenizer written to %s", directory)


class TokenizerTask:
    """What a micro-batch does in stage 1, and how its reconstructions are looked at."""

    def __init__(self, recipe: TokenizerRecipe, *, evaluation_batches: Iterable[Mapping[str, Any]]) -> None:
        """Load the frozen networks.

        Args:
            recipe: The run.
            evaluation_batches: This rank's batches with `images` and `mask`, iterable anew for each evaluation.
        """
        self.recipe = recipe
        self.config = recipe.model.config()
        self.loss = recipe.loss
        self.evaluation_batches = evaluation_batches
        self.device = distributed.device()
        self.teacher = self._build_teacher()
        self.objective = PixelObjective(self.loss, teacher=self.teacher, device=self.device)
        self.usage = CodebookUsage(
            self.config.codebook_size,
            scales=self.config.scales,
            window=max(1, recipe.usage_window // distributed.world_size()),
            all_reduce=distributed.sum_over_ranks,
        )

    def train_step(self, engines: Engines, batch: Mapping[str, Any], state: TrainState) -> Metrics:
        """Tokenizer forward and backward with the discriminator frozen, then the discriminator's own."""
        images = batch["images"]
        generator, discriminator = engines[GENERATOR], engines.get(DISCRIMINATOR)
        dropped = draw_dropped_scale(
            num_scales=len(self.config.scales), probability=self.recipe.scale_drop, seed=state.seed, step=state.step
        )
        output = generator(images, dropped_scale=dropped)
        terms = self._latent_terms(output, images)
        total = torch.stack(list(terms.values())).sum()
        metrics = {"loss": total.detach(), **terms}
        if output.reconstruction is not None:
            gradient, pixel_terms, further = self.objective.gradient(
                output.reconstruction, images, discriminator, state.step
            )
            total = total + (output.reconstruction * gradient).sum()
            metrics |= pixel_terms | further
            metrics["loss"] = metrics["loss"] + torch.stack(list(pixel_terms.values())).sum()
            metrics["psnr"] = batch_psnr(output.reconstruction, images)
        generator.backward(total)
        metrics |= self.objective.train_discriminator(discriminator, images, output.reconstruction, state.step)
        self.usage.update(output.indices)
        return {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """PSNR on the evaluation images, codebook usage, a grid to look at, and alarms."""
        usage = self.usage.compute()
        alarms = [self.usage.alarm(usage) if state.samples >= self.recipe.usage_window else None]
        metrics, pictures = {}, {}
        if self.config.pixel_decoder is not None:
            metrics["psnr"], shown = self._reconstruct(engines[GENERATOR])
            if shown is not None:
                alarms.append(constant_image_alarm(shown[1]))
                pictures["reconstructions"] = reconstruction_grid(*(to_uint8(part[:8]).cpu().numpy() for part in shown))
        return EvalResult(metrics=metrics | usage, images=pictures, alarms=tuple(alarm for alarm in alarms if alarm))

    def _reconstruct(self, engine: Engine) -> tuple[float, tuple[Tensor, Tensor] | None]:
        def reconstruct(images: Tensor) -> Tensor:
            # The bare module's training forward: under ZeRO-3 it gathers, `reconstruct` would not.
            with engine.autocast():
                return engine.module(images).reconstruction

        return mean_psnr(reconstruct, self.evaluation_batches, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """This rank's usage window."""
        return {"usage": self.usage.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.usage.load_state_dict(state["usage"])

    def _build_teacher(self) -> Teacher | None:
        needed = self.config.semantic_decoder is not None or self.loss.perceptual == "teacher"
        config = self.recipe.teacher.config(self.recipe.model.preset)
        return build_teacher(config).to(self.device) if needed and config is not None else None

    def _latent_terms(self, output: TokenizerOutput, images: Tensor) -> dict[str, Tensor]:
        """The weighted terms of L_total that do not look at the reconstructed picture: L_VQ and L_sem; all fp32."""
        terms = {"codebook": output.codebook_loss, "commitment": output.commitment_loss}
        if self.config.entropy_weight > 0:
            terms["entropy"] = output.entropy_loss
        if output.semantic is not None:
            terms["semantic"] = self.loss.semantic_weight * semantic_loss(output.semantic, self.teacher(images))
        return terms

"""Stage 2: a larger pixel decoder on frozen codes (paper, appendix B.1, "Effect of Tokenizer Decoder Finetuning").

Only the pixel decoder and the discriminator are engines. The tokenizer that makes the codes is frozen and lives outside
both, in fp32 and never under autocast: the codes of an image are the same bits before and after.
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
from tokenflow.nn.fingerprint import fingerprint
from tokenflow.nn.grow import grow_decoder
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.pixels import DISCRIMINATOR, PixelObjective, batch_psnr, discriminator_engine, mean_psnr
from tokenflow.tasks.stage import engine_options
from tokenflow.tokenizer.decoders import PixelDecoder
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher, build_teacher
from tokenflow.train import Engine, Engines, EvalResult, Metrics, TrainState, distributed

logger = logging.getLogger(__name__)

DECODER = "decoder"


def load_frozen_tokenizer(recipe: DecoderRecipe) -> TokenFlowTokenizer:
    """The tokenizer whose codes are decoded, frozen, on this rank's device.

    Raises:
        OSError: It cannot be had.
        ValueError: It has no pixel decoder, or reads pictures of another size than the recipe's.
    """
    tokenizer = TokenFlowTokenizer.from_pretrained(recipe.tokenizer).requires_grad_(False)
    recipe.decoded(tokenizer.config)
    return tokenizer.to(distributed.device())


def build_engines(recipe: DecoderRecipe, launch: Launch, *, tokenizer: TokenFlowTokenizer) -> Engines:
    """The decoder's engine and, unless the loss has none, the discriminator's. Every rank calls it."""
    if launch.init_from is not None:
        raise ValueError(
            f"--init_from is {launch.init_from}, but this stage starts from a whole tokenizer: give its folder as "
            "--tokenizer. With --decoder.channel_factor 1 --decoder.block_factor 1 its decoder is trained at its size."
        )
    common = engine_options(recipe, launch)
    decoder = Engine(
        lambda: build_decoder(recipe, tokenizer),
        name=DECODER,
        optimizer=recipe.optimizer,
        ema_decay=recipe.train.ema_decay,
        **common,
    )
    image_size = tokenizer.config.image_size
    adversary = discriminator_engine(
        recipe.loss, image_size=image_size, optimizer=recipe.discriminator_optimizer, **common
    )
    return {DECODER: decoder, **adversary}


def build_decoder(recipe: DecoderRecipe, tokenizer: TokenFlowTokenizer) -> PixelDecoder:
    """The decoder to train, on the CPU: larger as the recipe says, and equal in function unless it starts at random."""
    config = recipe.decoded(tokenizer.config)
    decoder = PixelDecoder(
        config.pixel_decoder, code_width=config.width_of(config.pixel_decoder.reads), image_size=config.image_size
    )
    decoder.projection.load_state_dict(tokenizer.pixel_decoder.projection.state_dict())
    if recipe.decoder.start == "grown":
        grow_decoder(tokenizer.pixel_decoder.network, decoder.network, channel_factor=recipe.decoder.channel_factor)
    return decoder


def export(recipe: DecoderRecipe, engines: Engines, directory: Path, *, tokenizer: TokenFlowTokenizer) -> None:
    """Write the tokenizer with its new decoder, averaged weights if there are any. Every rank calls it."""
    weights = engines[DECODER].gathered_average()
    if not distributed.is_main_process():
        return
    with torch.device("meta"):
        result = TokenFlowTokenizer(recipe.decoded(tokenizer.config))
    kept = {name: value for name, value in tokenizer.state_dict().items() if not name.startswith("pixel_decoder.")}
    result.load_state_dict(kept | {f"pixel_decoder.{name}": value for name, value in weights.items()}, assign=True)
    result.teacher = tokenizer.teacher
    result.save_pretrained(directory)
    logger.info("tokenizer with its new decoder written to %s", directory)


class DecoderTask:
    """What a micro-batch does in stage 2, and how its reconstructions are looked at."""

    def __init__(
        self,
        recipe: DecoderRecipe,
        *,
        tokenizer: TokenFlowTokenizer,
        evaluation_batches: Iterable[Mapping[str, Any]],
    ) -> None:
        """Load the frozen networks.

        Args:
            recipe: The run.
            tokenizer: Frozen; makes the codes, and its own decoder is what the new one is compared with.
            evaluation_batches: This rank's batches with `images` and `mask`, iterable anew for each evaluation.
        """
        self.recipe = recipe
        self.tokenizer = tokenizer
        self._fingerprint = fingerprint(tokenizer)
        self.evaluation_batches = evaluation_batches
        self.device = distributed.device()
        self.objective = PixelObjective(recipe.loss, teacher=_build_teacher(recipe, tokenizer), device=self.device)
        self._base_psnr: float | None = None

    def train_step(self, engines: Engines, batch: Mapping[str, Any], state: TrainState) -> Metrics:
        """Decoder forward and backward with the discriminator frozen, then the discriminator's own."""
        images = batch["images"]
        decoder, discriminator = engines[DECODER], engines.get(DISCRIMINATOR)
        reconstruction = decoder(self._code_map(images)).float()
        gradient, terms, further = self.objective.gradient(reconstruction, images, discriminator, state.step)
        decoder.backward((reconstruction * gradient).sum())
        metrics = {"loss": torch.stack(list(terms.values())).sum(), **terms, **further}
        metrics["psnr"] = batch_psnr(reconstruction, images)
        metrics |= self.objective.train_discriminator(discriminator, images, reconstruction, state.step)
        return {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """PSNR of the new decoder and of the tokenizer's own on the evaluation images, and a grid to look at."""
        engine = engines[DECODER]

        def reconstruct(images: Tensor) -> Tensor:
            codes = self._code_map(images)
            with engine.autocast():
                return engine.module(codes).float()

        psnr, shown = mean_psnr(reconstruct, self.evaluation_batches, device=self.device)
        if self._base_psnr is None:
            self._base_psnr, _ = mean_psnr(self.tokenizer.reconstruct, self.evaluation_batches, device=self.device)
        metrics = {"psnr": psnr, "psnr_base": self._base_psnr, "psnr_gain": psnr - self._base_psnr}
        if shown is None:
            return EvalResult(metrics=metrics)
        alarm = constant_image_alarm(shown[1])
        grid = reconstruction_grid(*(to_uint8(part[:8]).cpu().numpy() for part in shown))
        return EvalResult(metrics=metrics, images={"reconstructions": grid}, alarms=(alarm,) if alarm else ())

    def state_dict(self) -> dict[str, Any]:
        """Which tokenizer's codes the decoder has learned."""
        return {"tokenizer": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ValueError where the tokenizer's folder holds another one by now."""
        if state["tokenizer"] != self._fingerprint:
            raise ValueError(
                f"the tokenizer {self.recipe.tokenizer} is not the one that this run began with: its weights or its "
                "configuration changed. Put that one back, or begin another run with another --output."
            )

    @torch.no_grad()
    def _code_map(self, images: Tensor) -> Tensor:
        """What the decoder reads, made from nothing but the codes: [B, code, h, w], fp32."""
        return self.tokenizer.pixel_codes(self.tokenizer.encode(images))


def _build_teacher(recipe: DecoderRecipe, tokenizer: TokenFlowTokenizer) -> Teacher | None:
    """The teacher behind `loss.perceptual: teacher`, frozen; None where the loss needs none."""
    if recipe.loss.perceptual != "teacher":
        return None
    config = tokenizer.teacher if recipe.teacher is None else recipe.teacher.config("")
    if config is None:
        raise ValueError(
            "loss.perceptual is teacher, but the tokenizer's config.json names none. Give --teacher.preset (and "
            "--teacher.pretrained), or set loss.perceptual lpips or none."
        )
    return build_teacher(config).to(distributed.device())

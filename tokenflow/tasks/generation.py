"""Stage 3: a transformer learns to paint the codes of a frozen tokenizer scale by scale (paper, section 3.3).

Only the transformer is an engine. The tokenizer lies outside it, in fp32 and never under autocast: bf16 would change
2 % of the codes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenflow.config import Launch
from tokenflow.data import EvaluationBatches, to_uint8
from tokenflow.data.hashing import mix
from tokenflow.evaluation.grid import tile
from tokenflow.generation.config import GeneratorConfig, check_tokenizer
from tokenflow.generation.model import Generator
from tokenflow.generation.refinement import with_guesses
from tokenflow.generation.text_field import TextField, TextTokens
from tokenflow.generation.text_to_image import TextToImage
from tokenflow.language.hf import HfLanguage, load_hf_language
from tokenflow.tasks.generation_prompts import (
    ClassPrompts,
    Prompts,
    TextPrompts,
    build_text_tokenizer,
    class_folders,
)
from tokenflow.tasks.generation_recipe import GenerationRecipe
from tokenflow.tasks.generation_weights import generator_config, initial_weights
from tokenflow.tasks.stage import engine_options, whole_module
from tokenflow.tasks.stored_codes import batch_codes, check_stored_codes
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.train import (
    Engine,
    Engines,
    EvalResult,
    Metrics,
    TrainState,
    decay_matrices_only,
    distributed,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GENERATOR = "generator"
_COLUMNS = 8
_GUESSES = 0x6E55
"""Keeps the draws of guesses apart from others of the same seed."""


class GenerationParts:
    """What a run has before there is an engine: both tokenizers, the checkpoint, the generator's configuration."""

    def __init__(self, recipe: GenerationRecipe, launch: Launch) -> None:
        """Load them and check that they go together. Every rank makes one.

        Raises:
            OSError: The image tokenizer cannot be had.
            ValueError: Something cannot be had, or does not fit; both sides are named.
        """
        self.recipe = recipe
        self.tokenizer = TokenFlowTokenizer.from_pretrained(recipe.tokenizer).requires_grad_(False)
        choice = f"(model.preset {recipe.model.preset})"
        check_tokenizer(recipe.model.config(), self.tokenizer.config, generator=choice, name=recipe.tokenizer)
        if self.tokenizer.config.image_size != recipe.data.image_size:
            raise ValueError(
                f"data.image_size is {recipe.data.image_size}, but the tokenizer {recipe.tokenizer} reads "
                f"{self.tokenizer.config.image_size} pixels. Make them equal."
            )
        check_stored_codes(recipe.data, self.tokenizer, name=recipe.tokenizer)
        self.checkpoint: HfLanguage | None = load_hf_language(recipe.language) if recipe.language else None
        self.text_tokenizer: PreTrainedTokenizerBase | None = build_text_tokenizer(recipe, launch)
        self.config: GeneratorConfig = generator_config(
            recipe,
            text_tokenizer=self.text_tokenizer,
            checkpoint=None if self.checkpoint is None else self.checkpoint.config,
        )
        self.tokenizer.to(distributed.device())

    def prompts(self) -> Prompts:
        """What samples are called, with the draws of training."""
        if self.text_tokenizer is None:
            return ClassPrompts(
                self.config, caption_drop=self.recipe.caption_drop, folders=class_folders(self.recipe.data)
            )
        return TextPrompts(
            TextField(self.text_tokenizer, self.config),
            caption_drop=self.recipe.caption_drop,
            first_sentence=self.recipe.first_sentence,
        )

    def text_to_image(self, generator: Generator) -> TextToImage:
        """The public face of a generator of this run."""
        return TextToImage(generator, tokenizer=self.tokenizer, text_tokenizer=self.text_tokenizer)


def build_engines(recipe: GenerationRecipe, launch: Launch, *, parts: GenerationParts) -> Engines:
    """The generator's engine. Every rank calls it."""
    weights: Any = launch.init_from
    if weights is None and parts.checkpoint is not None:
        weights = initial_weights(parts.config, parts.checkpoint, new_rows=recipe.new_rows, seed=recipe.train.seed)
    engine = Engine(
        lambda: build_generator(parts.config),
        name=GENERATOR,
        optimizer=recipe.optimizer,
        **engine_options(recipe, launch),
        parameter_groups=lambda module: decay_matrices_only(module, weight_decay=recipe.optimizer.weight_decay),
        ema_decay=recipe.train.ema_decay,
        weights=weights,
        construction=recipe.construction,
    )
    return {GENERATOR: engine}


def build_generator(config: GeneratorConfig) -> Generator:
    """A generator with random weights whose constants lie on this rank's device, however it is built."""
    generator = Generator(config)
    # Under sharded construction nobody moves buffers, and these are made on the CPU.
    generator.feature_levels = generator.feature_levels.to(distributed.device())
    return generator


def export(recipe: GenerationRecipe, engines: Engines, directory: Path, *, parts: GenerationParts) -> None:
    """Write a TextToImage folder, with averaged weights if there are any. Every rank calls it."""
    weights = engines[GENERATOR].gathered_average()
    if not distributed.is_main_process():
        return
    with torch.device("meta"):
        generator = Generator(parts.config)
    generator.load_state_dict(weights, assign=True)
    parts.text_to_image(generator).save_pretrained(directory)
    logger.info("text-to-image model written to %s", directory)


def evaluation_batches(recipe: GenerationRecipe) -> EvaluationBatches:
    """This rank's samples for evaluations during training: `evaluation_sources`, else the first training ones."""
    data = dataclasses.replace(
        recipe.data, sources=recipe.evaluation_sources or recipe.data.sources, crop="center", flip_probability=0.0
    )
    return EvaluationBatches(
        data,
        at_most=recipe.evaluation_images,
        batch_size=recipe.train.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


class GenerationTask:
    """What a micro-batch does in stage 3, and how the generator is looked at."""

    def __init__(
        self,
        recipe: GenerationRecipe,
        *,
        parts: GenerationParts,
        evaluation_batches: Iterable[Mapping[str, Any]],
    ) -> None:
        """Put the frozen parts together.

        Args:
            recipe: The run.
            parts: Tokenizers and configuration.
            evaluation_batches: This rank's batches with `images` or `codes`, and `mask`, iterable anew.
        """
        self.recipe = recipe
        self.parts = parts
        self.evaluation_batches = evaluation_batches
        self.device = distributed.device()
        self.prompts = parts.prompts()

    def train_step(self, engines: Engines, batch: Mapping[str, Any], state: TrainState) -> Metrics:
        """Codes and their features, then the transformer's forward and backward."""
        engine = engines[GENERATOR]
        codes = batch_codes(self.parts.tokenizer, batch)
        features = with_guesses(
            self.parts.tokenizer.scale_inputs(codes),
            codes,
            lookup=self.parts.tokenizer.quantizer.quantizer.lookup,
            scales=self.parts.config.scales,
            codebook_size=self.parts.config.codebook_size,
            probability=self.recipe.refinement,
            seeds=[mix(seed, _GUESSES) for seed in batch["sample_seed"].tolist()],
        )
        text = self.prompts.training(batch)
        output = engine(
            text.ids.to(self.device),
            codes,
            features,
            text_lengths=text.lengths,
            scale_weights=self.recipe.scale_weights,
        )
        engine.backward(output.loss)
        return {
            "loss": output.loss.detach(),
            "accuracy": output.accuracy.detach(),
            **self._by_scale("loss", output.scale_losses.detach()),
        }

    @torch.no_grad()
    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """Loss and accuracy on the evaluation images, and pictures of the recipe's prompts."""
        engine = engines[GENERATOR]
        return EvalResult(metrics=self._measure(engine), images=self._paint(engine))

    def state_dict(self) -> dict[str, Any]:
        """No state besides the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _measure(self, engine: Engine) -> dict[str, float]:
        """Means over the images of all ranks. Every rank runs the module equally often, as ZeRO-3 needs."""
        totals = torch.zeros(3 + 2 * len(self.parts.config.scales), dtype=torch.float64, device=self.device)
        for batch in self.evaluation_batches:
            mask = batch["mask"]
            content = {key: batch[key].to(self.device) for key in ("images", "codes") if key in batch}
            codes, text = batch_codes(self.parts.tokenizer, content), self.prompts.evaluation(batch)
            # A batch of padding alone runs its first row, and counts for nothing.
            rows = torch.nonzero(mask if mask.any() else torch.arange(len(mask)) == 0)[:, 0]
            text = TextTokens(text.ids[rows], tuple(text.lengths[row] for row in rows.tolist()))
            with engine.autocast():
                chosen = codes[rows.to(self.device)]
                features = self.parts.tokenizer.scale_inputs(chosen)
                output = engine.module(text.ids.to(self.device), chosen, features, text_lengths=text.lengths)
            means = [output.loss[None], output.accuracy[None], output.scale_losses, output.scale_accuracies]
            totals += int(mask.sum()) * torch.cat([torch.ones(1, device=self.device), *means]).double()
        count, *sums = distributed.sum_over_ranks(totals).tolist()
        loss, accuracy, *by_scale = (value / max(count, 1) for value in sums)
        half = len(self.parts.config.scales)
        named = [("loss", by_scale[:half]), ("accuracy", by_scale[half:])]
        return {"loss": loss, "accuracy": accuracy} | {
            key: value for name, values in named for key, value in self._by_scale(name, values).items()
        }

    def _paint(self, engine: Engine) -> dict[str, np.ndarray]:
        """A grid of the recipe's prompts, painted by rank 0 with the same random numbers each time."""
        samples, tokenizer = self.recipe.samples, self.parts.tokenizer
        if not samples.prompts or tokenizer.pixel_decoder is None:
            return {}
        prompts: list[Any] = list(samples.prompts)
        if self.parts.text_tokenizer is None:
            prompts = [int(prompt) for prompt in prompts]
        with whole_module(engine, lambda: Generator(self.parts.config)) as generator:
            if not distributed.is_main_process():
                return {}
            with engine.autocast():
                codes = self.parts.text_to_image(generator).generate_codes(
                    prompts, guidance_scale=samples.guidance_scale, steps=samples.steps, seed=samples.seed
                )
            pictures = to_uint8(tokenizer.decode(codes)).cpu().numpy()
        rows = [pictures[start : start + _COLUMNS] for start in range(0, len(pictures), _COLUMNS)]
        return {"samples": tile(rows, columns=min(_COLUMNS, len(pictures)))}

    def _by_scale(self, name: str, values: Any) -> dict[str, Any]:
        return {f"{name}/scale_{scale}": v for scale, v in zip(self.parts.config.scales, values, strict=True)}

"""Stages 4 and 5: a language model learns to read the features of a frozen image tokenizer (paper, section 3.4).

Only language model and projector are an engine. The tokenizer lies outside it, in fp32 and never under autocast.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenflow.config import Launch
from tokenflow.data import ConversationReader
from tokenflow.language.hf import HfLanguage, load_hf_language
from tokenflow.language.lazy_tensors import open_tensors
from tokenflow.language.text_tokenizer import load_text_tokenizer
from tokenflow.nn.composed_folder import TEXT_FOLDER
from tokenflow.nn.folder import read_description
from tokenflow.nn.hub import find_folder
from tokenflow.tasks.conversation_batches import (
    EvaluationConversations,
    PrepareConversation,
    Prepared,
    batch_of,
    conversation_loader,
    token_means,
)
from tokenflow.tasks.stage import engine_options
from tokenflow.tasks.stored_codes import check_conversations_codes
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.tokenizer.config import from_dict
from tokenflow.train import (
    Engine,
    Engines,
    EvalResult,
    Metrics,
    TrainState,
    decay_matrices_only,
    distributed,
)
from tokenflow.understanding.backbone import language_weights
from tokenflow.understanding.batching import MultimodalBatch
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.conversation_tokens import ConversationTokenizer, check_supervision, report
from tokenflow.understanding.features import image_features
from tokenflow.understanding.image_to_text import ImageToText
from tokenflow.understanding.lora import adapted_weights, add_lora, merge_lora
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.pretrained import load_tower

logger = logging.getLogger(__name__)

ENGINE = "multimodal"
_SHOWN = 32
"""Conversations that the start-up report counts."""
_WHITENED = 512
"""Pictures whose features' statistics whiten all features."""


class UnderstandingParts:
    """What a run has before there is an engine: image tokenizer, text tokenizer, configuration, first weights."""

    def __init__(self, recipe: UnderstandingRecipe) -> None:
        """Load them and check that they go together. Every rank makes one.

        Raises:
            OSError: Something cannot be had.
            ValueError: Something does not fit, or the template would teach the wrong tokens.
        """
        self.recipe = recipe
        features = recipe.model.features or "last_scale"
        self.tower = load_tower(recipe.tokenizer, features=features).requires_grad_(False).eval()
        self.checkpoint: HfLanguage | None = None
        if recipe.continue_from is not None:
            self.folder = find_folder(recipe.continue_from)
            description = read_description(self.folder, key="multimodal")["multimodal"]
            begun = from_dict(UnderstandingConfig, description)
            language = begun.language
            text_source: str | Path = self.folder / TEXT_FOLDER
        else:
            self.checkpoint = load_hf_language(str(recipe.language))
            language, text_source = self.checkpoint.config, str(recipe.language)
        self.config = recipe.model.config(language, self.tower.config)
        if recipe.continue_from is not None and begun.rotary != self.config.rotary:
            # no weight is of another shape, so nothing else would tell
            logger.warning(
                "%s learned with rotary %r and goes on with %r: places are learned anew. Or set model.rotary.",
                *(recipe.continue_from, begun.rotary, self.config.rotary),
            )
        self.text_tokenizer = load_text_tokenizer(text_source)
        self.reader = ConversationTokenizer(self.text_tokenizer, self.config.template, system=self.config.system)
        for sources in (recipe.data.sources, recipe.evaluation_sources):
            if sources:
                data = dataclasses.replace(recipe.data, sources=sources)
                check_conversations_codes(data, self.tower, name=recipe.tokenizer, aspect=self.config.aspect)
        self.prepare = PrepareConversation(self.reader, self.config)
        check_supervision(self.reader)
        self.tower.to(distributed.device())

    def weights(self) -> Mapping[str, Tensor]:
        """First weights of the plain model, read one at a time."""
        if self.checkpoint is None:
            return open_tensors(self.folder)
        features = self._some_features() if self.config.whiten else None
        return language_weights(self.config, self.checkpoint, seed=self.recipe.train.seed, features=features)

    def _some_features(self) -> Tensor:
        """Features [rows, C] of the first training pictures; the same on every rank."""
        reader = ConversationReader(self.recipe.data, seed=self.recipe.train.seed, prepare=self.prepare)
        images: list[Tensor] = []
        for position in range(min(sum(reader.sizes), 8 * _WHITENED)):
            found = reader.read(position)[0].images
            images += [found] if len(found) else []
            if sum(map(len, images)) >= _WHITENED:
                break
        if not images:
            raise ValueError("whiten is true and the first conversations have no picture; set model.whiten to false.")
        device = distributed.device()
        parts = [
            image_features(self.tower, some.to(device), self.config.features)
            for some in torch.cat(images).split(self.recipe.train.micro_batch_size)
        ]
        return torch.cat(parts).flatten(0, 1).cpu()

    def build(self) -> MultimodalModel:
        """A model with random weights, of which the recipe's part is trainable."""
        model = MultimodalModel(self.config)
        if self.recipe.trains == "projector":
            model.language.requires_grad_(False)
            model.head.requires_grad_(False)
        if self.recipe.trains == "lora":
            add_lora(model, self.recipe.lora)
        return model

    def loader(self) -> Any:
        """For `train_stage`."""
        return conversation_loader(self.prepare)

    def evaluation(self) -> EvaluationConversations:
        """This rank's conversations for evaluations during training."""
        recipe = self.recipe
        return EvaluationConversations(
            recipe.data,
            sources=recipe.evaluation_sources,
            at_most=recipe.evaluation_conversations,
            batch_size=recipe.train.micro_batch_size,
            prepare=self.prepare,
        )


def build_engines(recipe: UnderstandingRecipe, launch: Launch, *, parts: UnderstandingParts) -> Engines:
    """The model's engine. Every rank calls it."""
    weights: Any = launch.init_from or parts.weights()
    if recipe.trains == "lora" and launch.init_from is None:
        weights = adapted_weights(weights, parts.config, recipe.lora, seed=recipe.train.seed)
    engine = Engine(
        parts.build,
        name=ENGINE,
        optimizer=recipe.optimizer,
        **engine_options(recipe, launch),
        parameter_groups=partial(decay_matrices_only, weight_decay=recipe.optimizer.weight_decay),
        ema_decay=recipe.train.ema_decay,
        weights=weights,
        construction=recipe.construction,
    )
    return {ENGINE: engine}


def show_supervision(parts: UnderstandingParts) -> None:
    """Log what is learned of the first conversations, the first one coloured. Every rank calls it."""
    if not distributed.is_main_process():
        return
    first = next(iter(parts.evaluation()))[0][:_SHOWN]
    found = report(parts.reader, [sample.tokens for sample in first])
    logger.info(
        "%d of %d tokens of %d conversations are learned; the first:\n%s",
        found.supervised,
        found.tokens,
        len(first),
        found.text,
    )


def export(recipe: UnderstandingRecipe, engines: Engines, directory: Path, *, parts: UnderstandingParts) -> None:
    """Write an ImageToText folder, with averaged weights if there are any, adapters merged. Every rank calls it."""
    weights = engines[ENGINE].gathered_average()
    if not distributed.is_main_process():
        return
    if recipe.trains == "lora":
        weights = merge_lora(weights, recipe.lora)
    with torch.device("meta"):
        model = MultimodalModel(parts.config)
    model.load_state_dict(weights, assign=True)
    ImageToText(model, tokenizer=parts.tower, text_tokenizer=parts.text_tokenizer).save_pretrained(directory)
    logger.info("multimodal model written to %s", directory)


class UnderstandingTask:
    """What a micro-batch does in stages 4 and 5, and how the model is looked at."""

    def __init__(
        self,
        recipe: UnderstandingRecipe,
        *,
        parts: UnderstandingParts,
        evaluation: Iterable[tuple[list[Prepared], bool]],
    ) -> None:
        """Put the frozen parts together; `evaluation` is this rank's part, iterable anew."""
        self.recipe, self.parts, self.evaluation = recipe, parts, evaluation

    def train_step(self, engines: Engines, batch: Mapping[str, Any], state: TrainState) -> Metrics:
        """Features of the images, then the model's forward and backward.

        The loss is the mean over the learned tokens of the micro-batch, as in LLaVA.
        """
        engine = engines[ENGINE]
        output = engine(*self._inputs(batch["samples"]))
        engine.backward(output.loss)
        return {
            "loss": output.loss.detach(),
            "accuracy": output.accuracy.detach(),
            "learned_tokens": output.tokens.float(),
        }

    @torch.no_grad()
    def evaluate(self, engines: Engines, state: TrainState) -> EvalResult:
        """Loss and accuracy over the learned tokens of the evaluation conversations of all ranks."""
        engine = engines[ENGINE]
        return EvalResult(metrics=token_means(engine, (self._counted(*item) for item in self.evaluation)))

    def state_dict(self) -> dict[str, Any]:
        """No state besides the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _counted(self, samples: list[Prepared], counts: bool) -> tuple[tuple[Any, ...], bool]:
        return self._inputs(samples), counts

    def _inputs(self, samples: list[Prepared]) -> tuple[MultimodalBatch, Tensor | None]:
        config = self.parts.config
        batch, images = batch_of(
            samples,
            image_tokens=config.image_tokens,
            max_length=config.max_length,
            packing=self.recipe.packing,
        )
        return batch, image_features(self.parts.tower, images, config.features) if len(images) else None

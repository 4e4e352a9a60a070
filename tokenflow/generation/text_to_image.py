"""Prompts to pictures: the public face of the generator (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflow.generation.choosing import ImageStreams
from tokenflow.generation.config import check_tokenizer
from tokenflow.generation.model import Generator
from tokenflow.generation.options import SamplingConfig, Schedule, Steps
from tokenflow.generation.packing import Weights, for_sampling
from tokenflow.generation.predictors import CachedPredictor, Compile
from tokenflow.generation.sampling import SamplingProgress, sample_codes
from tokenflow.generation.text_field import TextField, TextTokens, class_tokens
from tokenflow.nn.composed_folder import OnTheHub
from tokenflow.tokenizer.model import TokenFlowTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenflow.nn.composed_folder import ImageTokenizer

Prompts = Sequence[str] | Sequence[int]


class TextToImage(OnTheHub):
    """A generator with its text tokenizer and its image tokenizer."""

    def __init__(
        self,
        generator: Generator,
        *,
        tokenizer: TokenFlowTokenizer | str | Path,
        text_tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        """Put the parts together.

        Args:
            generator: The transformer.
            tokenizer: The image tokenizer, or the folder or hub repository that it is loaded from.
            text_tokenizer: The one of the generator's text; None for class prompts.

        Raises:
            ValueError: The image tokenizer is not the one that the generator paints with; it names both values.
        """
        self.tokenizer_source = None if isinstance(tokenizer, TokenFlowTokenizer) else tokenizer
        if not isinstance(tokenizer, TokenFlowTokenizer):
            tokenizer = TokenFlowTokenizer.from_pretrained(tokenizer)
        check_tokenizer(
            generator.config, tokenizer.config, generator="given", name=str(self.tokenizer_source or "as given")
        )
        if (text_tokenizer is None) != (generator.config.prompt == "class"):
            raise ValueError(f"prompts are {generator.config.prompt!r}; pass a text tokenizer for text only.")
        self.generator = generator.eval()
        self.tokenizer = tokenizer.eval()
        self.text_tokenizer = text_tokenizer
        self._packed: tuple[object, Generator] | None = None
        self._field = None if text_tokenizer is None else TextField(text_tokenizer, generator.config)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: TokenFlowTokenizer | str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> TextToImage:
        """From a folder written by `save_pretrained`, or a hub repository of that layout.

        `tokenizer` stands in for the image tokenizer that the folder holds or names; `revision` is a branch, tag or
        commit of the repository.

        Raises:
            OSError: Neither a folder nor a hub repository that can be reached, or files are missing.
            ValueError: The files hold something else, or the tokenizer is another.
        """
        from tokenflow.generation.pretrained import load_text_to_image

        return load_text_to_image(cls, source, tokenizer=tokenizer, revision=revision, token=token)

    @classmethod
    def from_authors(
        cls, folder: str | Path, *, tokenizer: TokenFlowTokenizer | str | Path, **overrides: Any
    ) -> TextToImage:
        """From the authors' `TokenFlow-t2i` folder; `overrides` replace fields of the `GeneratorConfig`."""
        from tokenflow.generation.authors import read_authors_folder
        from tokenflow.language.text_tokenizer import load_text_tokenizer

        generator = read_authors_folder(folder, **overrides)
        return cls(generator, tokenizer=tokenizer, text_tokenizer=load_text_tokenizer(folder))

    def save_pretrained(
        self, directory: str | Path, *, image_tokenizer: ImageTokenizer = "copy", max_shard_size: int | str = "5GB"
    ) -> Path:
        """Write weights (safetensors, sharded above `max_shard_size`), config.json, a model card, the text tokenizer.

        The image tokenizer goes with it as a `copy`, or as a `reference` to where it was loaded from.
        """
        from tokenflow.generation.pretrained import save_text_to_image

        return save_text_to_image(self, directory, image_tokenizer=image_tokenizer, max_shard_size=max_shard_size)

    def to(self, *arguments: Any, **keywords: Any) -> TextToImage:
        """Move the generator and the image tokenizer to a device; a dtype is taken by the generator alone."""
        self.generator.to(*arguments, **keywords)
        self.tokenizer.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return self.generator.feature_levels.device

    def generate(
        self,
        prompts: Prompts,
        *,
        stop_after_scale: int | None = None,
        **options: Any,
    ) -> Float[Tensor, "B 3 S S"]:
        """Pictures of prompts (texts, or class numbers), float32 in [-1, 1].

        `options` are those of `generate_codes`. `stop_after_scale` paints that many scales, for previews.
        """
        codes = self.generate_codes(prompts, stop_after_scale=stop_after_scale, **options)
        return self.tokenizer.decode(codes)

    @torch.no_grad()
    def generate_codes(
        self,
        prompts: Prompts,
        *,
        guidance_scale: float = 7.5,
        guidance: Schedule | tuple[float, ...] = "linear",
        steps: Steps = "three-step",
        top_k: tuple[int, ...] | None = None,
        top_p: tuple[float, ...] | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        first_image: int = 0,
        stop_after_scale: int | None = None,
        compile: Compile = "none",
        weights: Weights = "auto",
        progress: Callable[[SamplingProgress], None] | None = None,
    ) -> Int[Tensor, "B L"]:
        """Codes of prompts; `tokenizer.decode` shows them.

        Args:
            prompts: Texts, or class numbers for a class-conditional generator.
            guidance_scale: Strength of guidance; 0 leaves it out and halves the work.
            guidance: `linear`, `constant`, or one factor of `guidance_scale` for each scale.
            steps: `greedy`, or the paper's `single-step`, `two-step`, `three-step` sampling.
            top_k: With `top_p`, replaces the preset: one number a step.
            top_p: See `top_k`.
            negative_prompt: What guidance leads away from; empty is what training with dropped captions learned.
            seed: With the image's index it decides its random numbers, whatever the batch.
            first_image: Index of the first prompt's image; of the next ones, the numbers after it.
            stop_after_scale: Number of scales to paint; None for all.
            compile: `step` runs each step through torch.compile.
            weights: `packed` keeps a second copy of the matrices in a layout that is faster on a CPU in fp32; `auto`
                does so for models up to 2 GB. Changes of the weights by optimisers are seen, through `.data` they are
                not: use `plain` while such a thing happens.
            progress: Called after every step.

        Raises:
            ValueError: An empty prompt, a class that does not exist, or sampling that makes no sense.
        """
        config = self._sampling(steps, top_k, top_p, guidance_scale=guidance_scale, guidance=guidance)
        num_scales = len(self.generator.config.scales) if stop_after_scale is None else stop_after_scale
        if not 1 <= num_scales <= len(self.generator.config.scales):
            raise ValueError(
                f"stop_after_scale is {stop_after_scale}; expected 1 to {len(self.generator.config.scales)}."
            )
        text = self._read(prompts)
        without_guidance = not any(config.strengths(len(self.generator.config.scales))[:num_scales])
        negative = None if without_guidance else self._read_negative(negative_prompt)
        # A compiled step lays its matrices out by itself.
        generator = self._for_sampling("plain" if compile == "step" and weights == "auto" else weights)
        return sample_codes(
            CachedPredictor(generator, text, negative, compile=compile),
            generator=generator,
            quantizer=self.tokenizer.quantizer,
            config=config,
            streams=ImageStreams(seed=seed, indices=range(first_image, first_image + len(prompts))),
            batch=len(prompts),
            num_scales=num_scales,
            progress=progress,
        )

    def _for_sampling(self, weights: Weights) -> Generator:
        state = (weights, [(p.data_ptr(), p._version) for p in self.generator.parameters()])
        if self._packed is None or self._packed[0] != state:
            self._packed = None  # the old copy goes before the new one comes
            self._packed = (state, for_sampling(self.generator, weights))
        return self._packed[1]

    def _sampling(
        self, steps: Steps, top_k: tuple[int, ...] | None, top_p: tuple[float, ...] | None, **guidance: Any
    ) -> SamplingConfig:
        if (top_k is None) != (top_p is None):
            raise ValueError(f"top_k is {top_k} and top_p {top_p}; pass both, or a preset with steps=.")
        if top_k is not None:
            return SamplingConfig(top_k=tuple(top_k), top_p=tuple(top_p), **guidance)
        return SamplingConfig.named(steps, codebook_size=self.generator.config.codebook_size, **guidance)

    def _read(self, prompts: Prompts) -> TextTokens:
        if isinstance(prompts, str) or not len(prompts):
            raise ValueError(f"prompts is {prompts!r}; expected a list of at least one.")
        if self._field is None:
            return class_tokens(prompts, self.generator.config)
        for number, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(f"prompt {number} is {prompt!r}; expected a text that says what to paint.")
        return self._field(prompts, warn=True)

    def _read_negative(self, prompt: str) -> TextTokens:
        if self._field is None:
            return class_tokens([None], self.generator.config)
        return self._field([prompt], warn=True)

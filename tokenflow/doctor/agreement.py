"""Whether a text-to-image model samples what it predicts: the cached sampler against one pass over everything."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenflow.generation.options import SamplingConfig
from tokenflow.generation.text_field import TextField, TextTokens, class_tokens
from tokenflow.generation.text_to_image import TextToImage

EPSILON = 1e-4
"""Gap between the best two logits up to which either may win: fp32 sums in another order differ by less."""
PROMPTS = ("a red circle left of a blue square", "two green triangles", "a photo of a star")
"""Of different lengths, so that padding is tried too."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Codes of the cached sampler against the argmax of teacher-forced logits."""

    compared: int
    """Codes whose best two logits are further apart than `epsilon`."""
    different: int
    """Of these, the ones that differ."""
    tied: int
    epsilon: float
    first_scale: int | None
    """The scale of the first difference."""


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Share of codes that come back from their own picture."""

    overall: float
    scales: dict[int, float]


@torch.inference_mode()
def compare_with_teacher_forcing(model: TextToImage, *, guidance_scale: float) -> Agreement:
    """Sample greedily with the cache, then predict the same codes in one pass over text and image."""
    generator, prompts = model.generator, _prompts(model)
    codes = model.generate_codes(prompts, steps="greedy", guidance_scale=guidance_scale)
    features = model.tokenizer.scale_inputs(codes)
    logits = _logits(model, read_text(model, prompts).to(model.device), features)
    config = SamplingConfig(guidance_scale=guidance_scale)
    if guidance_scale:
        nothing = read_text(model, [None] * len(prompts)).to(model.device)
        without = _logits(model, nothing, features)
        strengths = torch.tensor(config.strengths(len(generator.config.scales)), device=logits.device)
        sizes = torch.tensor([scale**2 for scale in generator.config.scales], device=logits.device)
        strength = strengths.repeat_interleave(sizes)[None, :, None]
        logits = logits + strength * (logits - without)
    best = logits.topk(2, dim=-1).values
    # Guidance multiplies differences of logits, and their rounding with them.
    epsilon = EPSILON * (1 + 2 * guidance_scale)
    clear = best[..., 0] - best[..., 1] > epsilon
    wrong = clear & (logits.argmax(dim=-1) != codes)
    first = wrong.any(dim=0).nonzero().flatten().tolist()
    starts = generator.config.scale_starts
    scale = max(i for i, start in enumerate(starts) if start <= first[0]) if first else None
    return Agreement(
        compared=int(clear.sum()),
        different=int(wrong.sum()),
        tied=int((~clear).sum()),
        epsilon=epsilon,
        first_scale=None if scale is None else generator.config.scales[scale],
    )


@torch.inference_mode()
def round_trip_of_codes(model: TextToImage) -> RoundTrip:
    """Paint, and let the image tokenizer read the pictures again."""
    codes = model.generate_codes(_prompts(model), guidance_scale=0.0)
    equal = (model.tokenizer.encode(model.tokenizer.decode(codes)) == codes).float()
    config = model.generator.config
    parts = equal.split([scale**2 for scale in config.scales], dim=1)
    shares = {scale: float(part.mean()) for scale, part in zip(config.scales, parts, strict=True)}
    return RoundTrip(overall=float(equal.mean()), scales=shares)


def read_text(model: TextToImage, prompts: list[str | int | None]) -> TextTokens:
    """Prompts as the generator reads them; None is the unconditional one."""
    config = model.generator.config
    if model.text_tokenizer is None:
        return class_tokens(prompts, config)
    return TextField(model.text_tokenizer, config)([prompt or "" for prompt in prompts])


def _logits(model: TextToImage, text: TextTokens, features: Tensor) -> Tensor:
    hidden = model.generator.hidden(text.ids, features, text_lengths=text.lengths)
    return model.generator.head(hidden[:, text.ids.shape[1] - 1 :]).float()


def _prompts(model: TextToImage) -> list[str] | list[int]:
    if model.text_tokenizer is not None:
        return list(PROMPTS)
    return [number % model.generator.config.num_classes for number in range(len(PROMPTS))]

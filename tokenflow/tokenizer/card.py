"""The model card that `save_pretrained` writes beside a tokenizer's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokenflow.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    from tokenflow.tokenizer.model import TokenFlowTokenizer

PAPER = "https://arxiv.org/abs/2412.03069"

_USE = """
```python
from tokenflow import TokenFlowTokenizer

tokenizer = TokenFlowTokenizer.from_pretrained("this folder, or its id on the hub")
codes = tokenizer.encode(images)  # float32 [B, 3, {size}, {size}] in [-1, 1] to int64 [B, {tokens}]
{second}
```
"""

_LICENCE = """
The code is under the Apache License 2.0. The weights carry the terms of the teacher and of the training data with
them: whoever publishes this folder adds `license:` to the top of this card.
"""


def preset_name(config: TokenizerConfig) -> str | None:
    """The preset that a tokenizer is, whatever its encoders started from; None where it is none."""
    from tokenflow.tokenizer.presets import PRESETS

    wanted = config.with_pretrained(None)
    return next((name for name, value in PRESETS.items() if value.with_pretrained(None) == wanted), None)


def model_card(tokenizer: TokenFlowTokenizer, *, metrics: Mapping[str, float] | None = None) -> str:
    """README.md of a tokenizer: what it is, how to load it, and what was measured, if given."""
    config = tokenizer.config
    decodes = config.pixel_decoder is not None
    second = (
        "images = tokenizer.decode(codes)  # and back, clamped to [-1, 1]"
        if decodes
        else "features = tokenizer.features(codes)  # for a language model"
    )
    rows = "".join(f"| {name} | {value} |\n" for name, value in _facts(tokenizer).items())
    text = (
        "---\nlibrary_name: tokenflow\ntags:\n- image-tokenizer\n- vector-quantization\n---\n\n"
        "# TokenFlow tokenizer\n\n"
        f"An image tokenizer for understanding and generation, after [TokenFlow]({PAPER}).\n\n"
        f"|  |  |\n|---|---|\n{rows}"
        + "\n## Use\n"
        + _USE.format(size=config.image_size, tokens=config.num_tokens, second=second)
    )
    if metrics:
        measured = "".join(f"| {name} | {value:.5g} |\n" for name, value in metrics.items())
        text += f"\n## Measured\n\n| measure | value |\n|---|---|\n{measured}"
    return text + "\n## Licence\n" + _LICENCE


def _facts(tokenizer: TokenFlowTokenizer) -> dict[str, str]:
    config = tokenizer.config
    facts = {
        "preset": preset_name(config) or "none of the named ones",
        "images": f"{config.image_size} x {config.image_size} pixels",
        "codes an image": f"{config.num_tokens}, scales {', '.join(map(str, config.scales))}",
        "codebook": f"{config.codebook_size:,} entries shared by "
        + " and ".join(f"{branch.name} ({branch.code_width} channels)" for branch in config.branches),
        "parameters": f"{sum(parameter.numel() for parameter in tokenizer.parameters()):,}",
    }
    for branch in config.branches:
        encoder = branch.encoder
        start = f", started from {_code(encoder.pretrained)}" if encoder.is_pretrained else ""
        facts[f"{branch.name} encoder"] = f"{encoder.kind}, {encoder.width} wide{start}"
    if config.pixel_decoder is not None:
        sizes = dataclasses.asdict(config.pixel_decoder.convolutional)
        facts["pixel decoder"] = f"{sizes['channels']} channels, {sizes['blocks']} residual blocks a level"
    if tokenizer.teacher is not None:
        teacher = tokenizer.teacher
        facts["teacher"] = teacher.kind + (f", {_code(teacher.pretrained)}" if teacher.pretrained else "")
    return facts


def _code(text: str | None) -> str:
    """A path or id that Markdown leaves alone."""
    return f"`{text}`"

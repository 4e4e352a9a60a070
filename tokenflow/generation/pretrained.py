"""A text-to-image model as a folder: generator, text tokenizer, image tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.language.text_tokenizer import load_text_tokenizer
from tokenflow.nn.composed_folder import (
    TEXT_FOLDER,
    ImageTokenizer,
    chosen_tokenizer,
    load_composed,
    save_composed,
    warn_of_other_codes,
)
from tokenflow.nn.folder import MAX_SHARD_SIZE
from tokenflow.tokenizer.config import from_dict, to_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer

if TYPE_CHECKING:
    from tokenflow.generation.text_to_image import TextToImage

_AUTHORS = " For the authors' TokenFlow-t2i use TextToImage.from_authors."


def save_text_to_image(
    model: TextToImage,
    directory: str | Path,
    *,
    image_tokenizer: ImageTokenizer,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write everything; the image tokenizer as a copy, or as the name that it was loaded from."""
    return save_composed(
        directory,
        state=model.generator.state_dict(),
        description={"generator": to_dict(model.generator.config)},
        card=_card(model),
        text_tokenizer=model.text_tokenizer,
        image_tokenizer=image_tokenizer,
        image_source=model.tokenizer_source,
        save_image_tokenizer=model.tokenizer.save_pretrained,
        max_shard_size=max_shard_size,
    )


def load_text_to_image(
    cls: type[TextToImage], source: str | Path, *, tokenizer: TokenFlowTokenizer | str | Path | None, **hub: Any
) -> TextToImage:
    """The inverse of `save_text_to_image`, from a folder or a hub repository; `tokenizer` replaces the named one.

    `hub`: `revision` and `token` of the repository.
    """
    generator, named, directory = load_composed(
        source,
        key="generator",
        hint=_AUTHORS,
        build=lambda description: Generator(from_dict(GeneratorConfig, description)),
        **hub,
    )
    chosen = chosen_tokenizer(tokenizer, named, directory=directory)
    reads_text = generator.config.prompt == "text"
    text_tokenizer = load_text_tokenizer(directory / TEXT_FOLDER) if reads_text else None
    model = cls(generator, tokenizer=chosen, text_tokenizer=text_tokenizer)
    if tokenizer is not None:
        warn_of_other_codes(model.tokenizer, named)
    return model


def _card(model: TextToImage) -> str:
    config = model.generator.config
    count = sum(parameter.numel() for parameter in model.generator.parameters())
    prompt = "prompts" if config.prompt == "text" else "class labels"
    example = '["a red circle left of a blue square"]' if config.prompt == "text" else "[207, 88]"
    return (
        "---\nlibrary_name: tokenflow\npipeline_tag: text-to-image\n---\n\n# TokenFlow text-to-image model\n\n"
        f"From {prompt} to {config.num_codes} codes of {config.codebook_size} "
        f"(scales {', '.join(map(str, config.scales))}); {config.language.depth} layers of width "
        f"{config.language.width}, {count:,} parameters.\n\n```python\nfrom tokenflow import TextToImage\n\n"
        f'model = TextToImage.from_pretrained("this folder")\nimages = model.generate({example})'
        "  # float32 [B, 3, S, S] in [-1, 1]\n```\n"
    )

"""A text-to-image model as a folder: generator, text tokenizer, image tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.language.text_tokenizer import load_text_tokenizer
from tokenflow.nn.folder import (
    CONFIG_FILE,
    MAX_SHARD_SIZE,
    assign_weights,
    find_folder,
    read_description,
    read_weights,
    save_folder,
    unchanged,
)
from tokenflow.tokenizer.config import from_dict, to_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer

if TYPE_CHECKING:
    from tokenflow.generation.text_to_image import TextToImage

TEXT_FOLDER = "text_tokenizer"
IMAGE_FOLDER = "image_tokenizer"
ImageTokenizer = Literal["copy", "reference"]
_AUTHORS = " For the authors' TokenFlow-t2i use TextToImage.from_authors."


def save_text_to_image(
    model: TextToImage,
    directory: str | Path,
    *,
    image_tokenizer: ImageTokenizer,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write everything; the image tokenizer as a copy, or as the name that it was loaded from."""
    directory = Path(directory)
    name = IMAGE_FOLDER
    if image_tokenizer == "reference":
        if model.tokenizer_source is None:
            raise ValueError("this image tokenizer was not loaded by name. Use image_tokenizer='copy'.")
        name = str(model.tokenizer_source)
    # Without it the folder is refused: a killed save never leaves new parts beside old ones.
    (directory / CONFIG_FILE).unlink(missing_ok=True)
    if image_tokenizer == "copy":
        model.tokenizer.save_pretrained(directory / IMAGE_FOLDER)
    if model.text_tokenizer is not None:
        model.text_tokenizer.save_pretrained(directory / TEXT_FOLDER)
    elif (directory / TEXT_FOLDER).is_dir():
        shutil.rmtree(directory / TEXT_FOLDER)
    return save_folder(
        directory,
        state=model.generator.state_dict(),
        description={"library": "tokenflow", "generator": to_dict(model.generator.config), "image_tokenizer": name},
        card=_card(model),
        max_shard_size=max_shard_size,
    )


def load_text_to_image(
    cls: type[TextToImage], source: str | Path, *, tokenizer: TokenFlowTokenizer | str | Path | None
) -> TextToImage:
    """The inverse of `save_text_to_image`, from a folder or a hub repository; `tokenizer` replaces the named one.

    The generator is in the dtype of its files, in memory maps of them.
    """
    directory = find_folder(source, patterns=None)
    with unchanged(directory):
        description = read_description(directory, key="generator", hint=_AUTHORS)
        state = read_weights(directory)
    with torch.device("meta"):
        generator = Generator(from_dict(GeneratorConfig, description["generator"]))
    assign_weights(generator, state, source=str(directory))
    name = description.get("image_tokenizer")
    if tokenizer is None and name is None:
        raise ValueError(f"{directory} names no image tokenizer. Pass tokenizer= (a folder, or a TokenFlowTokenizer).")
    if tokenizer is None:
        tokenizer = directory / name if (directory / name).is_dir() else name
    text_tokenizer = None
    if generator.config.prompt == "text":
        text_tokenizer = load_text_tokenizer(directory / TEXT_FOLDER)
    return cls(generator.eval(), tokenizer=tokenizer, text_tokenizer=text_tokenizer)


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

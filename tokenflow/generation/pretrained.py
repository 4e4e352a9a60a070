"""A text-to-image model as a folder: generator, text tokenizer, image tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.generation.weights import assign, save_weights, write_json
from tokenflow.language.lazy_tensors import LazyTensors, open_tensors
from tokenflow.language.text_tokenizer import load_text_tokenizer
from tokenflow.tokenizer.config import from_dict, to_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer

if TYPE_CHECKING:
    from tokenflow.generation.text_to_image import TextToImage

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
TEXT_FOLDER = "text_tokenizer"
IMAGE_FOLDER = "image_tokenizer"
ImageTokenizer = Literal["copy", "reference"]


def save_generator(generator: Generator, directory: str | Path) -> Path:
    """Write the generator's weights and configuration, without tokenizers; returns the folder."""
    directory = Path(directory)
    save_weights(generator.state_dict(), directory)
    write_json(directory / CONFIG_FILE, {"library": "tokenflow", "generator": to_dict(generator.config)})
    return directory


def load_generator(directory: str | Path) -> Generator:
    """A generator in eval mode, in the dtype of its files, from what `save_generator` or `save_pretrained` wrote."""
    directory = Path(directory)
    config = from_dict(GeneratorConfig, _description(directory)["generator"])
    with torch.device("meta"):
        generator = Generator(config)
    assign(generator, generator_weights(directory), source=str(directory))
    return generator.eval()


def generator_weights(directory: str | Path) -> LazyTensors:
    """The weights of `load_generator`'s folder under `Generator`'s names, read one at a time (for sharded models)."""
    return open_tensors(Path(directory))


def save_text_to_image(model: TextToImage, directory: str | Path, *, image_tokenizer: ImageTokenizer) -> Path:
    """Write everything; the image tokenizer as a copy, or as the name that it was loaded from."""
    directory = Path(directory)
    name = IMAGE_FOLDER
    if image_tokenizer == "reference":
        if model.tokenizer_source is None:
            raise ValueError("this image tokenizer was not loaded by name. Use image_tokenizer='copy'.")
        name = str(model.tokenizer_source)
    directory.mkdir(parents=True, exist_ok=True)
    if image_tokenizer == "copy":
        model.tokenizer.save_pretrained(directory / IMAGE_FOLDER)
    if model.text_tokenizer is not None:
        model.text_tokenizer.save_pretrained(directory / TEXT_FOLDER)
    elif (directory / TEXT_FOLDER).is_dir():
        shutil.rmtree(directory / TEXT_FOLDER)
    save_weights(model.generator.state_dict(), directory)
    (directory / CARD_FILE).write_text(_card(model))
    description = {"library": "tokenflow", "generator": to_dict(model.generator.config), "image_tokenizer": name}
    write_json(directory / CONFIG_FILE, description)
    return directory


def load_text_to_image(
    cls: type[TextToImage], source: str | Path, *, tokenizer: TokenFlowTokenizer | str | Path | None
) -> TextToImage:
    """The inverse of `save_text_to_image`, from a folder or a hub repository; `tokenizer` replaces the named one."""
    directory = Path(source) if Path(source).is_dir() else _download(str(source))
    description = _description(directory)
    generator = load_generator(directory)
    name = description.get("image_tokenizer")
    if tokenizer is None and name is None:
        raise ValueError(f"{directory} names no image tokenizer. Pass tokenizer= (a folder, or a TokenFlowTokenizer).")
    if tokenizer is None:
        tokenizer = directory / name if (directory / name).is_dir() else name
    text_tokenizer = None
    if generator.config.prompt == "text":
        text_tokenizer = load_text_tokenizer(directory / TEXT_FOLDER)
    return cls(generator, tokenizer=tokenizer, text_tokenizer=text_tokenizer)


def _description(directory: Path) -> dict:
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is no text-to-image folder: {CONFIG_FILE} is missing.")
    description = json.loads(path.read_text())
    if "generator" not in description:
        raise ValueError(
            f"{path} has no key 'generator'. Expected what `save_pretrained` writes; for the authors' TokenFlow-t2i "
            "use TextToImage.from_authors."
        )
    return description


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise OSError(
            f"{source!r} is neither a folder nor a hub repository that can be reached ({error}). Pass the folder that "
            "`save_pretrained` wrote."
        ) from error


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

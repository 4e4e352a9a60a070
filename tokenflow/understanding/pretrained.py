"""A multimodal model as a folder: language model and projector, text tokenizer, image tokenizer (or teacher)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenflow.language.text_tokenizer import load_text_tokenizer
from tokenflow.nn.composed_folder import (
    TEXT_FOLDER,
    ImageTokenizer,
    chosen_tokenizer,
    load_composed,
    save_composed,
    warn_of_other_codes,
)
from tokenflow.nn.folder import (
    MAX_SHARD_SIZE,
    assign_weights,
    read_description,
    read_weights,
    save_folder,
    unchanged,
)
from tokenflow.nn.hub import find_folder
from tokenflow.tokenizer.config import from_dict, to_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher, TeacherConfig, is_teacher_folder, teacher_tower
from tokenflow.understanding.config import Features, UnderstandingConfig
from tokenflow.understanding.features import Tower
from tokenflow.understanding.model import MultimodalModel

if TYPE_CHECKING:
    from tokenflow.understanding.image_to_text import ImageToText

_AUTHORS = " For the authors' Tokenflow-llava folders use ImageToText.from_authors."


def save_image_to_text(
    model: ImageToText,
    directory: str | Path,
    *,
    image_tokenizer: ImageTokenizer,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write everything; the image tokenizer as a copy, or as the name that it was loaded from."""
    return save_composed(
        directory,
        state=model.model.state_dict(),
        description={"multimodal": to_dict(model.model.config)},
        card=_card(model),
        text_tokenizer=model.text_tokenizer,
        image_tokenizer=image_tokenizer,
        image_source=model.tokenizer_source,
        save_image_tokenizer=partial(save_tower, model.tokenizer),
        max_shard_size=max_shard_size,
    )


def load_image_to_text(
    cls: type[ImageToText], source: str | Path, *, tokenizer: Tower | str | Path | None, **hub: Any
) -> ImageToText:
    """The inverse of `save_image_to_text`, from a folder or a hub repository; `tokenizer` replaces the named one.

    `hub`: `revision` and `token` of the repository.
    """
    model, named, directory = load_composed(
        source,
        key="multimodal",
        hint=_AUTHORS,
        build=lambda description: MultimodalModel(from_dict(UnderstandingConfig, description)),
        **hub,
    )
    chosen = chosen_tokenizer(tokenizer, named, directory=directory)
    found = cls(model, tokenizer=chosen, text_tokenizer=load_text_tokenizer(directory / TEXT_FOLDER))
    if tokenizer is not None:
        warn_of_other_codes(found.tokenizer, named)
    return found


def save_tower(tower: Tower, directory: Path) -> Path:
    """Write an image tokenizer, or a teacher, as a folder that `load_tower` reads."""
    if isinstance(tower, TokenFlowTokenizer):
        return tower.save_pretrained(directory)
    description = {"library": "tokenflow", "teacher": to_dict(tower.config)}
    card = "# Teacher\n\nA vision tower whose features a multimodal model of tokenflow reads.\n"
    return save_folder(directory, state=tower.state_dict(), description=description, card=card)


def load_tower(source: str | Path, *, features: Features) -> Tower:
    """An image tokenizer, or for `teacher` features a teacher, from a folder or a hub repository.

    A teacher's folder is one of `save_tower`, or of pipelines/teacher_pretrain.py.

    Raises:
        OSError: Neither, or files are missing.
        ValueError: The folder holds the other kind.
    """
    if features != "teacher":
        return TokenFlowTokenizer.from_pretrained(source)
    if is_teacher_folder(source):
        return teacher_tower(source)
    directory = find_folder(source)
    with unchanged(directory):
        description = read_description(directory, key="teacher")
        state = read_weights(directory)
    with torch.device("meta"):
        teacher = Teacher(from_dict(TeacherConfig, description["teacher"]))
    assign_weights(teacher, state, source=str(directory))
    return teacher.requires_grad_(False)


def _card(model: ImageToText) -> str:
    config = model.model.config
    count = sum(parameter.numel() for parameter in model.model.parameters())
    return (
        "---\nlibrary_name: tokenflow\npipeline_tag: image-text-to-text\n---\n\n# TokenFlow multimodal model\n\n"
        f"Images of {config.image_size} pixels as {config.image_tokens} positions ({config.features}); "
        f"{config.language.depth} layers of width {config.language.width}, {count:,} parameters.\n\n```python\n"
        "from tokenflow import ImageToText\n\n"
        'model = ImageToText.from_pretrained("this folder")\n'
        'answers = model.answer(["picture.jpg"], ["What is in the picture?"])\n```\n'
    )

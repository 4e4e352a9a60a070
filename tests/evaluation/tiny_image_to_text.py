"""A whole multimodal folder with random weights, small enough to answer in milliseconds."""

import dataclasses
from pathlib import Path

import torch

from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset
from tokenflow.understanding.image_to_text import ImageToText
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.presets import nano

CORPUS = [
    "USER: what colour is the star? ASSISTANT: red",
    "USER: how many squares are there? ASSISTANT: two",
    "USER: is there a purple cross? ASSISTANT: yes",
    "a green triangle above a yellow circle. is there a cyan star? no",
]


def tiny_model(folder: Path, *, seed: int = 0) -> ImageToText:
    """Built from scratch; `folder` is where its text tokenizer is trained."""
    torch.manual_seed(seed)
    words = load_text_tokenizer(train_sentencepiece(CORPUS, folder / "text", vocabulary_size=340))
    config = nano(text_vocabulary=len(words))
    language = dataclasses.replace(config.language, width=32, depth=1, heads=2, kv_heads=2, head_width=16, mlp_width=48)
    model = MultimodalModel(dataclasses.replace(config, language=language))
    return ImageToText(model, tokenizer=TokenFlowTokenizer(preset("tokenflow-nano")), text_tokenizer=words)


def tiny_folder(folder: Path, *, seed: int = 0) -> Path:
    """The same, saved."""
    return tiny_model(folder, seed=seed).save_pretrained(folder / "model")

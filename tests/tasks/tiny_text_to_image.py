"""A whole text-to-image folder with random weights, small enough to paint in milliseconds."""

import dataclasses
from pathlib import Path

import torch

from tokenflow import TextToImage, TokenFlowTokenizer
from tokenflow.data.captions import PROMPT_KINDS, prompts
from tokenflow.generation.model import Generator
from tokenflow.generation.presets import nano
from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece
from tokenflow.tokenizer.presets import preset


def tiny_model(folder: Path, *, seed: int = 0, text_length: int = 48) -> TextToImage:
    """Built from scratch; `folder` is where its text tokenizer is trained."""
    torch.manual_seed(seed)
    texts = [prompt.text for kind in PROMPT_KINDS for prompt in prompts(kind, count=20)]
    text = load_text_tokenizer(train_sentencepiece(texts, folder / "text", vocabulary_size=300))
    config = nano(text_vocabulary=len(text))
    language = dataclasses.replace(config.language, width=32, depth=1, heads=2, kv_heads=2, head_width=16, mlp_width=48)
    generator = Generator(dataclasses.replace(config, language=language, text_length=text_length))
    return TextToImage(generator, tokenizer=TokenFlowTokenizer(preset("tokenflow-nano")), text_tokenizer=text)


def tiny_folder(folder: Path, **fields) -> Path:
    """The same, saved."""
    return tiny_model(folder, **fields).save_pretrained(folder / "model")

"""A tiny generator and the quantiser it paints with, for tests."""

import dataclasses

import torch

from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.generation.text_field import TextTokens, pad_rows
from tokenflow.language.config import LanguageConfig
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig

SCALES = (1, 2, 3)


def tiny_config(**fields) -> GeneratorConfig:
    """32 codes over 40 text ids, text field of 6 tokens and one opening token."""
    language = LanguageConfig(
        vocabulary_size=72,
        width=32,
        depth=2,
        heads=4,
        kv_heads=fields.pop("kv_heads", 4),
        head_width=8,
        mlp_width=48,
        max_positions=64,
        norm_order="post",
        qk_norm=True,
    )
    config = GeneratorConfig(
        language=language,
        scales=SCALES,
        codebook_size=32,
        code_width=5,
        text_length=6,
        pad_token=39,
        image_token_start=40,
        image_open=(38,),
    )
    return dataclasses.replace(config, **fields)


def class_config(**fields) -> GeneratorConfig:
    """Three classes instead of text."""
    base = tiny_config()
    return dataclasses.replace(
        base,
        **{
            "language": dataclasses.replace(base.language, vocabulary_size=4),
            "prompt": "class",
            "num_classes": 3,
            "text_length": 1,
            "image_open": (),
            "pad_token": 3,
            "image_token_start": 4,
            "head_rows": "codes",
            "loss_over": "codes",
            **fields,
        },
    )


def build(config: GeneratorConfig) -> Generator:
    """With weights of a size at which prompts, positions and codes all matter."""
    torch.manual_seed(0)
    model = Generator(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                table = name.endswith(("embed_tokens.weight", "scale_embedding.weight", "image_positions.weight"))
                parameter.normal_(std=1.0 if table or name == "head.weight" else parameter.shape[1] ** -0.5)
    return model


def build_quantizer(config: GeneratorConfig) -> MultiScaleQuantizer:
    torch.manual_seed(1)
    widths = (config.code_width - 2, 2)
    return MultiScaleQuantizer(
        QuantizerConfig(codebook_size=config.codebook_size, code_widths=widths, scales=config.scales)
    )


def texts(config: GeneratorConfig, *lengths: int, seed: int = 2) -> TextTokens:
    """Random texts with so many tokens, the opening ones included."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, 38, (n - 1,), generator=generator).tolist() + list(config.image_open) for n in lengths]
    return pad_rows(rows, pad_token=config.pad_token)

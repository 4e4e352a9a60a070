"""The authors' `TokenFlow-t2i` folder (a Hugging Face Llama folder with their own keys): read and written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.generation.presets import LLAMA_CLOSE, LLAMA_OPEN
from tokenflow.generation.state_dict import check_authors, from_authors, to_authors
from tokenflow.language.hf import language_config
from tokenflow.language.lazy_tensors import open_tensors
from tokenflow.nn.folder import CONFIG_FILE, assign_weights, save_folder
from tokenflow.tokenizer.presets import SCALES_256


def authors_config(values: dict[str, Any], **overrides: Any) -> GeneratorConfig:
    """Our configuration of a `config.json` of the authors'; `overrides` replace top-level fields.

    What the file does not say is the released model's: nine scales to 16, 40 channels, Llama's tokens of "<img>".
    """
    missing = [name for name in ("vocab_size", "vq_codebook_size", "hidden_size") if name not in values]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; expected a text-to-image folder of the authors'.")
    codebook_size, vocabulary_size = values["vq_codebook_size"], values["vocab_size"]
    # Their files keep Llama's class of configuration; that norms come after, and on heads, is in their code only.
    language = dataclasses.replace(
        language_config({**values, "model_type": "llama"}), norm_order="post", qk_norm=True, tie_embeddings=False
    )
    start = vocabulary_size - codebook_size
    fields = {
        "scales": SCALES_256,
        "code_width": 40,
        "image_open": LLAMA_OPEN if start > max(LLAMA_OPEN) else (),
        "image_close": LLAMA_CLOSE if start > max(LLAMA_CLOSE) else (),
        **overrides,
    }
    return GeneratorConfig(
        language=language, codebook_size=codebook_size, pad_token=start - 1, image_token_start=start, **fields
    )


def read_authors_folder(folder: str | Path, **overrides: Any) -> Generator:
    """The generator of a folder of the authors', in eval mode and in the dtype of its files; strict.

    Raises:
        FileNotFoundError: config.json or weights are missing.
        ValueError: The weights do not fit the configuration; it names keys or shapes.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}. Expected the folder of TokenFlow-t2i.")
    config = authors_config(json.loads((folder / CONFIG_FILE).read_text()), **overrides)
    with torch.device("meta"):
        generator = Generator(config)
    state = dict(from_authors(generator.state_dict(), open_tensors(folder)).items())
    assign_weights(generator, state, source=str(folder))
    return generator.eval()


def write_authors_folder(generator: Generator, folder: str | Path) -> Path:
    """Write safetensors and config.json as the authors' loader expects them; returns the folder."""
    check_authors(generator.config)
    language = generator.config.language
    content = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": language.vocabulary_size,
        "hidden_size": language.width,
        "intermediate_size": language.mlp_width,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "max_position_embeddings": language.max_positions,
        "rms_norm_eps": language.norm_epsilon,
        "rope_theta": language.rope_theta,
        "rope_scaling": language.rope_scaling,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "torch_dtype": str(generator.head.weight.dtype).removeprefix("torch."),
        "mm_vision_vq_type": "TOKEN_FLOW",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "vq_codebook_size": generator.config.codebook_size,
        "tokenizer_padding_side": "right",
    }
    card = "# TokenFlow text-to-image model in the layout of the authors' TokenFlow-t2i\n"
    return save_folder(folder, state=to_authors(generator.state_dict()), description=content, card=card)

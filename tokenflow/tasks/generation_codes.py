"""The frozen image tokenizer of a generator: the codes of a batch, and whether stored codes are its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenflow.data import CodesDescription, DataConfig, codes_of
from tokenflow.generation.config import GeneratorConfig
from tokenflow.tokenizer.config import TokenizerConfig, to_dict
from tokenflow.tokenizer.model import TokenFlowTokenizer


@torch.no_grad()
def batch_codes(tokenizer: TokenFlowTokenizer, batch: Mapping[str, Any]) -> Tensor:
    """Codes [B, L] of a batch: those it brings, else of its images. fp32; call it outside any autocast."""
    return batch["codes"] if "codes" in batch else tokenizer.encode(batch["images"])


def describe_codes(tokenizer: TokenFlowTokenizer, *, name: str) -> CodesDescription:
    """What a folder of this tokenizer's codes says about itself; `name` is where the tokenizer was loaded from."""
    config = tokenizer.config
    return CodesDescription(
        tokenizer=name,
        fingerprint=fingerprint(tokenizer),
        image_size=config.image_size,
        scales=config.scales,
        codebook_size=config.codebook_size,
    )


def fingerprint(tokenizer: TokenFlowTokenizer) -> str:
    """A hash of all that codes depend on: encoders, codebooks, scales, image size. A new decoder changes nothing."""
    config = tokenizer.config
    branches = to_dict(config)["branches"]
    for branch in branches:
        # Where first weights once came from is no part of what the encoder computes.
        branch["encoder"].pop("pretrained", None)
    described = [config.image_size, config.codebook_size, list(config.scales), branches]
    digest = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=16)
    for name, value in sorted(tokenizer.state_dict().items()):
        if name.startswith(("encoders.", "quantizer.")):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_stored_codes(data: DataConfig, tokenizer: TokenFlowTokenizer, *, name: str) -> None:
    """ValueError, naming both, where a run would read the codes of another tokenizer."""
    stored = codes_of(data)
    if stored is None:
        return
    own = describe_codes(tokenizer, name=name)
    if stored.fingerprint != own.fingerprint:
        raise ValueError(
            f"{data.sources[0].path} holds codes of {stored}, but the run's tokenizer is {own}. Give the tokenizer of "
            "the codes as --tokenizer, or encode the pictures again with `tokenflow encode-shards`."
        )


def check_tokenizer(config: GeneratorConfig, tokenizer: TokenizerConfig, *, model: str, name: str) -> None:
    """ValueError, naming both, where a generator does not fit the image tokenizer it should paint with."""
    found = {
        "scales": tokenizer.scales,
        "codebook_size": tokenizer.codebook_size,
        "code_width": sum(tokenizer.code_widths),
    }
    for field, value in found.items():
        wanted = getattr(config, field)
        if wanted != value:
            raise ValueError(
                f"the generator {model} expects {field} {wanted}, the tokenizer {name} has {value}. Choose the other "
                f"tokenizer, or set model.overrides.{field}."
            )

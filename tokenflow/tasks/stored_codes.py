"""The frozen image tokenizer of a run: the codes of a batch, and whether stored codes are its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenflow.data import CodesDescription, ConversationConfig, DataConfig, codes_of, codes_of_conversations
from tokenflow.nn.fingerprint import fingerprint
from tokenflow.tokenizer.config import to_dict
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
        fingerprint=codes_fingerprint(tokenizer),
        image_size=config.image_size,
        scales=config.scales,
        codebook_size=config.codebook_size,
    )


def codes_fingerprint(tokenizer: TokenFlowTokenizer) -> str:
    """A hash of all that codes depend on: encoders, codebooks, scales, image size. A new decoder changes nothing."""
    config = to_dict(tokenizer.config)
    described = {name: config[name] for name in ("image_size", "codebook_size", "scales", "branches")}
    parts = nn.ModuleDict({"encoders": tokenizer.encoders, "quantizer": tokenizer.quantizer})
    return fingerprint(parts, config=described)


def check_stored_codes(data: DataConfig, tokenizer: TokenFlowTokenizer, *, name: str) -> None:
    """ValueError, naming both, where a run would read the codes of another tokenizer."""
    stored = codes_of(data)
    if stored is not None:
        _check_own(stored, tokenizer, where=data.sources[0].path, name=name)


def check_conversations_codes(data: ConversationConfig, tower: nn.Module, *, name: str, aspect: str) -> None:
    """ValueError where codes stand for the pictures of conversations and are another tokenizer's, or cannot serve.

    Args:
        data: Conversations and their pictures.
        tower: What makes features of pictures.
        name: Where the tower was loaded from.
        aspect: How pictures become square.
    """
    stored = codes_of_conversations(data)
    if stored is None:
        return
    where = next(path for path in data.image_paths if path is not None)
    if not isinstance(tower, TokenFlowTokenizer):
        raise ValueError(
            f"{where} holds codes of {stored}, but {name} is a teacher, which sees pictures. Give the folder or shards "
            "of the pictures as data.images."
        )
    if aspect != "crop":
        raise ValueError(
            f"model.aspect is {aspect}, but {where} holds codes of centre crops. Set model.aspect crop, or train on "
            "the pictures."
        )
    _check_own(stored, tower, where=where, name=name)


def _check_own(stored: CodesDescription, tokenizer: TokenFlowTokenizer, *, where: str, name: str) -> None:
    own = describe_codes(tokenizer, name=name)
    if stored.fingerprint != own.fingerprint:
        raise ValueError(
            f"{where} holds codes of {stored}, but the run's tokenizer is {own}. Give the tokenizer of the codes as "
            "--tokenizer, or encode the pictures again with `tokenflow encode-shards`."
        )

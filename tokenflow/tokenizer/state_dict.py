"""Names of weights: ours against the authors' checkpoints, open_clip, transformers and timm.

A table is a list of entries, one for each of our tensors, in the order of the foreign checkpoint; it is strict both
ways. The authors' words for the branches appear in this file only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenflow.nn.conv_resnet import ConvResnetConfig
from tokenflow.nn.vision_transformer import VisionTransformerConfig
from tokenflow.tokenizer.config import EncoderKind, TokenizerConfig
from tokenflow.tokenizer.encoders import CLIP_DEVIATION, CLIP_MEAN

USAGE_WINDOW = 131072
"""Length of the authors' `codebook_used` record, part of each of their checkpoints and read by nobody."""


@dataclass(frozen=True)
class Entry:
    """One of our tensors, and the foreign ones it is made of (concatenated over the first dimension)."""

    ours: str
    theirs: tuple[str, ...]
    leading: int = 0
    """Leading dimensions of size one that the foreign tensor has and ours has not."""


def rename_to_ours(
    table: Iterable[Entry], state: Mapping[str, Tensor], *, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Foreign weights under our names; a missing or an unexpected key is a ValueError naming some."""
    table = list(table)
    wanted = {name for entry in table for name in entry.theirs}
    missing, unexpected = sorted(wanted - set(state)), sorted(set(state) - wanted - set(ignored))
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit: {len(missing)} keys missing {missing[:5]}, {len(unexpected)} unexpected "
            f"{unexpected[:5]}. Check that the preset is the one the weights were made for."
        )
    renamed = {}
    for entry in table:
        parts = [state[name] for name in entry.theirs]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        renamed[entry.ours] = value.reshape(value.shape[entry.leading :])
    return renamed


def rename_to_theirs(table: Iterable[Entry], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `rename_to_ours`; strict too."""
    table = list(table)
    ours = {entry.ours for entry in table}
    if ours != set(state):
        raise ValueError(
            f"the weights do not fit the table: missing {sorted(ours - set(state))[:5]}, unexpected "
            f"{sorted(set(state) - ours)[:5]}. Check that the preset is the one the weights were made for."
        )
    renamed = {}
    for entry in table:
        for name, part in zip(entry.theirs, state[entry.ours].chunk(len(entry.theirs)), strict=True):
            renamed[name] = part.reshape((1,) * entry.leading + part.shape)
    return renamed


def authors_table(config: TokenizerConfig) -> list[Entry]:
    """Our tokenizer (semantic and pixel branch) against the authors' checkpoints."""
    if tuple(branch.name for branch in config.branches) != ("semantic", "pixel"):
        names = tuple(branch.name for branch in config.branches)
        raise ValueError(f"the authors' checkpoints have the branches ('semantic', 'pixel'); got {names}.")
    semantic, pixel = (branch.encoder for branch in config.branches)
    return [
        *_prefixed(encoder_table(pixel.convolutional), "encoders.pixel.tower.", "encoder."),
        *_prefixed(decoder_table(config.pixel_decoder.convolutional), "pixel_decoder.network.", "decoder."),
        *_linear("encoders.pixel.projection", "quant_conv"),
        *_linear("pixel_decoder.projection", "post_quant_conv"),
        *_prefixed(tower_table(semantic.kind, semantic.vision), "encoders.semantic.tower.", "encoder_vqkd."),
        *_prefixed(semantic_decoder_table(config.semantic_decoder.vision), "semantic_decoder.tower.", "decoder_vqkd."),
        *_linear("encoders.semantic.projection.hidden", "encode_task_layer.0"),
        *_linear("encoders.semantic.projection.output", "encode_task_layer.2"),
        *_linear("semantic_decoder.head.hidden", "decode_task_layer.0"),
        *_linear("semantic_decoder.head.output", "decode_task_layer.2"),
        Entry("quantizer.quantizer.codebook_0", ("quantize.embedding_vqkd.weight",)),
        Entry("quantizer.quantizer.codebook_1", ("quantize.embedding_vqgan.weight",)),
    ]


def authors_constants(config: TokenizerConfig) -> dict[str, Tensor]:
    """Tensors of the authors' checkpoints that are constants, and nothing of ours."""
    constants = {}
    kind = config.branches[0].encoder.kind
    if kind in ("vitamin", "siglip"):
        mean, deviation = (CLIP_MEAN, CLIP_DEVIATION) if kind == "vitamin" else ((0.5,) * 3, (0.5,) * 3)
        constants["scaling_layer.shift"] = torch.tensor(mean).view(1, 3, 1, 1)
        constants["scaling_layer.scale"] = torch.tensor(deviation).view(1, 3, 1, 1)
    return constants | {"quantize.codebook_used": torch.zeros(USAGE_WINDOW)}


def from_authors(config: TokenizerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the authors' as a state dict of `TokenFlowTokenizer(config)`; strict."""
    return rename_to_ours(authors_table(config), state, ignored=authors_constants(config))


def to_authors(config: TokenizerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under the authors' keys and in their order, with their constants; strict."""
    values = rename_to_theirs(authors_table(config), state) | authors_constants(config)
    return {name: values[name] for name in _authors_keys(config)}


def _authors_keys(config: TokenizerConfig) -> list[str]:
    """Keys of the authors' checkpoint in its order."""
    names = [name for entry in authors_table(config) for name in entry.theirs]
    codebooks = names.index("quantize.embedding_vqkd.weight")
    names[codebooks:codebooks] = authors_constants(config)
    ordered: list[str] = []
    for _, group in itertools.groupby(names, key=lambda name: re.sub(r"\.[qkv]_proj\.\w+$", "", name)):
        # transformers registers keys, values, queries; a fused entry lists its parts as they are concatenated.
        ordered += sorted(group, key=lambda name: "kvq".find(name.split(".")[-2][0]) if "_proj." in name else 0)
    return ordered


def tower_table(kind: EncoderKind, config: VisionTransformerConfig) -> list[Entry]:
    """A semantic tower against the library its family comes from; an output projection is not part of it."""
    if kind in ("clip", "open_clip"):
        return _clip_table(config)
    if kind == "vitamin":
        return _vitamin_table(config)
    if kind == "siglip":
        return _prefixed(_siglip_table(config), "", "vision_model.")
    raise ValueError(f"kind must be clip, open_clip, vitamin or siglip; got {kind!r}.")


def _clip_table(config: VisionTransformerConfig) -> list[Entry]:
    table = [
        Entry("class_embedding", ("class_embedding",)),
        Entry("position_embedding", ("positional_embedding",)),
        Entry("patch_embedding.weight", ("conv1.weight",)),
        *_linear("pre_norm", "ln_pre"),
    ]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}.", f"transformer.resblocks.{index}."
        table += [
            Entry(f"{ours}attention.query_key_value.weight", (f"{theirs}attn.in_proj_weight",)),
            Entry(f"{ours}attention.query_key_value.bias", (f"{theirs}attn.in_proj_bias",)),
            *_linear(f"{ours}attention.output", f"{theirs}attn.out_proj"),
            *_linear(f"{ours}attention_norm", f"{theirs}ln_1"),
            *_linear(f"{ours}mlp.expand", f"{theirs}mlp.c_fc"),
            *_linear(f"{ours}mlp.contract", f"{theirs}mlp.c_proj"),
            *_linear(f"{ours}mlp_norm", f"{theirs}ln_2"),
        ]
    return table + _linear("final_norm", "ln_post")


def _vitamin_table(config: VisionTransformerConfig) -> list[Entry]:
    stem, backbone = "patch_embedding.", "patch_embed.backbone."
    table = [
        *_linear(f"{stem}stem_in", f"{backbone}stem.conv1"),
        *_linear(f"{stem}stem_norm", f"{backbone}stem.norm1"),
        *_linear(f"{stem}stem_out", f"{backbone}stem.conv2"),
    ]
    positions = [(stage, block) for stage, blocks in enumerate(config.stem.blocks) for block in range(blocks)]
    for index, (stage, block) in enumerate(positions):
        ours, theirs = f"{stem}blocks.{index}.", f"{backbone}stages.{stage}.{block}."
        if stage == 1 and block == 0:
            table += _linear(f"{ours}shortcut", f"{theirs}shortcut.expand")
        for name, foreign in (
            ("norm", "pre_norm"),
            ("expand", "conv1_1x1"),
            ("depthwise", "conv2_kxk"),
            ("contract", "conv3_1x1"),
        ):
            table += _linear(ours + name, theirs + foreign)
    table += [*_linear(f"{stem}pool", f"{backbone}pool.proj"), *_linear(f"{stem}pool_norm", f"{backbone}pool.norm")]
    for index in range(config.depth):
        ours = theirs = f"blocks.{index}."
        for name, foreign in (
            ("attention_norm", "norm1"),
            ("attention.query_key_value", "attn.qkv"),
            ("attention.output", "attn.proj"),
            ("mlp_norm", "norm2"),
            ("mlp.norm", "mlp.norm"),
            ("mlp.gate", "mlp.w0"),
            ("mlp.expand", "mlp.w1"),
            ("mlp.contract", "mlp.w2"),
        ):
            table += _linear(ours + name, theirs + foreign)
    return table


def _siglip_table(config: VisionTransformerConfig) -> list[Entry]:
    table = [
        *_linear("patch_embedding", "embeddings.patch_embedding"),
        Entry("position_embedding", ("embeddings.position_embedding.weight",)),
    ]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}.", f"encoder.layers.{index}."
        for part in ("weight", "bias"):
            projections = tuple(f"{theirs}self_attn.{name}_proj.{part}" for name in "qkv")
            table.append(Entry(f"{ours}attention.query_key_value.{part}", projections))
        for name, foreign in (
            ("attention.output", "self_attn.out_proj"),
            ("attention_norm", "layer_norm1"),
            ("mlp.expand", "mlp.fc1"),
            ("mlp.contract", "mlp.fc2"),
            ("mlp_norm", "layer_norm2"),
        ):
            table += _linear(ours + name, theirs + foreign)
    if config.unused_head:
        table += [
            *_linear("unused_head.input_norm", "post_layernorm"),
            Entry("unused_head.probe", ("head.probe",), leading=2),
            Entry("unused_head.query_key_value.weight", ("head.attention.in_proj_weight",)),
            Entry("unused_head.query_key_value.bias", ("head.attention.in_proj_bias",)),
            *_linear("unused_head.output", "head.attention.out_proj"),
            *_linear("unused_head.norm", "head.layernorm"),
            *_linear("unused_head.mlp.expand", "head.mlp.fc1"),
            *_linear("unused_head.mlp.contract", "head.mlp.fc2"),
        ]
    return table


def semantic_decoder_table(config: VisionTransformerConfig) -> list[Entry]:
    """The semantic decoder's transformer against the authors' (BEiT's names)."""
    table = [
        Entry("class_embedding", ("cls_token",), leading=2),
        Entry("position_embedding", ("pos_embed",), leading=1),
        *_linear("patch_embedding", "patch_embed.proj"),
    ]
    for index in range(config.depth):
        prefix = f"blocks.{index}."
        table += [
            *_linear(f"{prefix}attention_norm", f"{prefix}norm1"),
            Entry(f"{prefix}attention.query_bias", (f"{prefix}attn.q_bias",)),
            Entry(f"{prefix}attention.value_bias", (f"{prefix}attn.v_bias",)),
            Entry(f"{prefix}attention.query_key_value.weight", (f"{prefix}attn.qkv.weight",)),
            *_linear(f"{prefix}attention.output", f"{prefix}attn.proj"),
            *_linear(f"{prefix}mlp_norm", f"{prefix}norm2"),
            *_linear(f"{prefix}mlp.expand", f"{prefix}mlp.fc1"),
            *_linear(f"{prefix}mlp.contract", f"{prefix}mlp.fc2"),
        ]
    return table + _linear("final_norm", "fc_norm")


def encoder_table(config: ConvResnetConfig) -> list[Entry]:
    """The convolutional encoder against the authors'."""
    table = _linear("conv_in", "conv_in")
    channels = config.channels
    for level, multiplier in enumerate(config.multipliers):
        lowest = level == len(config.multipliers) - 1
        level_channels = config.channels * multiplier
        table += _level(level, channels, level_channels, blocks=config.blocks, attention=config.attention and lowest)
        if not lowest:
            table += _linear(f"levels.{level}.resize.conv", f"conv_blocks.{level}.downsample.conv")
        channels = level_channels
    return [*table, *_middle(config), *_linear("norm_out", "norm_out"), *_linear("conv_out", "conv_out")]


def decoder_table(config: ConvResnetConfig) -> list[Entry]:
    """The convolutional decoder against the authors'."""
    table = _linear("conv_in", "conv_in") + _middle(config)
    channels = config.channels * config.multipliers[-1]
    for level, multiplier in enumerate(reversed(config.multipliers)):
        level_channels = config.channels * multiplier
        attention = config.attention and level == 0
        table += _level(level, channels, level_channels, blocks=config.blocks + 1, attention=attention)
        if level < len(config.multipliers) - 1:
            table += _linear(f"levels.{level}.resize.conv", f"conv_blocks.{level}.upsample.conv")
        channels = level_channels
    return [*table, *_linear("norm_out", "norm_out"), *_linear("conv_out", "conv_out")]


def _middle(config: ConvResnetConfig) -> list[Entry]:
    table = _residual("middle.before.", "mid.0.", widens=False)
    if config.attention:
        table += _attention("middle.attention.", "mid.1.")
    return table + _residual("middle.after.", "mid.2.", widens=False)


def _level(level: int, in_channels: int, out_channels: int, *, blocks: int, attention: bool) -> list[Entry]:
    table = []
    for block in range(blocks):
        widens = block == 0 and in_channels != out_channels
        table += _residual(f"levels.{level}.blocks.{block}.", f"conv_blocks.{level}.res.{block}.", widens=widens)
    for block in range(blocks if attention else 0):
        table += _attention(f"levels.{level}.attentions.{block}.", f"conv_blocks.{level}.attn.{block}.")
    return table


def _residual(ours: str, theirs: str, *, widens: bool) -> list[Entry]:
    table = [entry for name in ("norm1", "conv1", "norm2", "conv2") for entry in _linear(ours + name, theirs + name)]
    return table + (_linear(f"{ours}shortcut", f"{theirs}nin_shortcut") if widens else [])


def _attention(ours: str, theirs: str) -> list[Entry]:
    names = (("norm", "norm"), ("query", "q"), ("key", "k"), ("value", "v"), ("output", "proj_out"))
    return [entry for name, foreign in names for entry in _linear(ours + name, theirs + foreign)]


def _linear(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}.{part}", (f"{theirs}.{part}",)) for part in ("weight", "bias")]


def _prefixed(table: Iterable[Entry], ours: str, theirs: str) -> list[Entry]:
    return [Entry(ours + e.ours, tuple(theirs + name for name in e.theirs), e.leading) for e in table]

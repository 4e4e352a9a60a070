"""Weights from outside: pretrained towers, and whole tokenizers as safetensors + config.json."""

from __future__ import annotations

import logging
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenflow.nn.folder import (
    MAX_SHARD_SIZE,
    assign_weights,
    read_description,
    read_weights,
    save_folder,
    unchanged,
)
from tokenflow.nn.hub import find_folder, push_folder
from tokenflow.nn.vision_transformer import VisionTransformerConfig
from tokenflow.tokenizer.card import model_card
from tokenflow.tokenizer.config import EncoderKind, TokenizerConfig, from_dict, to_dict
from tokenflow.tokenizer.state_dict import Entry, rename_to_ours, tower_table

if TYPE_CHECKING:
    from tokenflow.tokenizer.model import TokenFlowTokenizer
    from tokenflow.tokenizer.teachers import Teacher, TeacherConfig

logger = logging.getLogger(__name__)
_HALF = (torch.float16, torch.bfloat16)


def pretrained_weights(config: TokenizerConfig) -> dict[str, Tensor]:
    """First weights of every encoder with a `pretrained` source, under the tokenizer's state-dict names.

    For models that are sharded while they are built: copy each tensor under its gathered parameter.
    """
    weights = {}
    for branch in config.branches:
        encoder = branch.encoder
        if encoder.is_pretrained:
            tower = tower_weights(encoder.kind, encoder.pretrained, vision=encoder.vision)
            weights |= {f"encoders.{branch.name}.tower.{name}": value for name, value in tower.items()}
    return weights


def load_pretrained_encoders(model: TokenFlowTokenizer) -> TokenFlowTokenizer:
    """Copy `pretrained_weights` into a tokenizer that lies whole in memory; returns it."""
    weights = pretrained_weights(model.config)
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        _copy(parameters[name], value, name=name)
    return model


def load_pretrained_teacher(teacher: Teacher) -> Teacher:
    """Fill a teacher from its `pretrained` source; None and "random" leave it as it is."""
    config = teacher.config
    if config.pretrained in (None, "random"):
        return teacher
    weights = tower_weights(
        config.kind, config.pretrained, vision=config.vision, projection_width=config.projection_width
    )
    tower = {name: value for name, value in weights.items() if name != "projection"}
    parameters = dict(teacher.tower.named_parameters())
    for name, value in tower.items():
        _copy(parameters[name], value, name=name)
    if teacher.projection is not None:
        _copy(teacher.projection.weight, weights["projection"].T, name="projection")
    return teacher


@torch.no_grad()
def _copy(parameter: nn.Parameter, value: Tensor, *, name: str) -> None:
    if parameter.shape != value.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} in the pretrained weights; expected {tuple(parameter.shape)}. "
            "Use the sizes of the source in the configuration (sharded model: use pretrained_weights and gather)."
        )
    parameter.copy_(value)


def tower_weights(
    kind: EncoderKind, source: str, *, vision: VisionTransformerConfig, projection_width: int | None = None
) -> dict[str, Tensor]:
    """A pretrained tower under our names; with `projection_width` also its output projection as `projection`.

    `source` is a local file or folder, or what the kind's library knows: open_clip's tag for ViT-B-16-quickgelu
    (`clip`), an `hf-hub:` id (`open_clip`), a timm name (`vitamin`), a transformers id (`siglip`). OSError where it
    cannot be had; ValueError where it does not fit.
    """
    raw = _read_source(kind, source)
    table = list(tower_table(kind, vision))
    if projection_width is not None:
        table.append(Entry("projection", ("proj",)))
    wanted = {name for entry in table for name in entry.theirs}
    # A source holds more than the features need: text tower, head, last layers.
    return rename_to_ours(table, {name: value for name, value in raw.items() if name in wanted})


def _read_source(kind: EncoderKind, source: str) -> dict[str, Tensor]:
    path = Path(source)
    if path.exists():
        return _tower_part(kind, _read_local(path))
    if "/" in source and (source.startswith(("/", ".")) or (kind == "open_clip" and not source.startswith("hf-hub:"))):
        raise FileNotFoundError(
            f"pretrained source {source!r} ({kind}) does not exist. Correct the path, or train a teacher first."
        )
    try:
        return _tower_part(kind, _fetch(kind, source))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise OSError(
            f"the pretrained {kind} weights {source!r} cannot be fetched ({type(error).__name__}: {error}). Download "
            f"{_where(kind, source)} where there is a network and set `pretrained` of the encoder (or teacher) to the "
            "local file or folder; `pretrained: random` starts from random weights."
        ) from error


def _where(kind: EncoderKind, source: str) -> str:
    return {
        "clip": f"open_clip's ViT-B-16-quickgelu weights {source!r}",
        "vitamin": "https://huggingface.co/jienengchen/ViTamin-XL-256px (pytorch_model.bin or model.safetensors)",
        "siglip": f"https://huggingface.co/{source} (config.json and model.safetensors)",
        "open_clip": f"the hub repository {source!r} (open_clip_model.safetensors)",
    }[kind]


def _fetch(kind: EncoderKind, source: str) -> Mapping[str, Tensor]:
    """The library's own loader; imported here because each is slow to import."""
    if kind == "clip":
        import open_clip

        return open_clip.create_model("ViT-B-16-quickgelu", pretrained=source).state_dict()
    if kind == "open_clip":
        import open_clip

        return open_clip.create_model(source).state_dict()
    if kind == "vitamin":
        import timm

        return timm.create_model(source, pretrained=True, num_classes=0).state_dict()
    from transformers import SiglipVisionModel

    return SiglipVisionModel.from_pretrained(source).state_dict()


def _read_local(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or (weights-only) torch file, or of a folder that holds one."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin")) or sorted(path.glob("*.pt"))
        if not found:
            raise FileNotFoundError(
                f"{path} holds no .safetensors, .bin or .pt file; expected one with the tower's weights."
            )
        return {name: value for file in found for name, value in _read_local(file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a plain file of tensors ({error}). Expected safetensors or a state dict saved by "
            "torch.save: convert it where you trust it."
        ) from error
    return state.get("state_dict", state)


def _tower_part(kind: EncoderKind, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower's tensors, prefixes of the whole model removed."""
    prefixes = {"clip": "visual.", "open_clip": "visual.", "vitamin": "visual.trunk.", "siglip": ""}
    prefix = prefixes[kind]
    if prefix and any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if kind == "siglip":
        # transformers 5 dropped the prefix that checkpoints, and transformers 4, have.
        state = {"vision_model." + name.removeprefix("vision_model."): value for name, value in state.items()}
    return dict(state)


def save_tokenizer(
    model: TokenFlowTokenizer,
    directory: str | Path,
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write weights, config.json and README.md (a model card); returns the folder."""
    description: dict[str, Any] = {"library": "tokenflow", "tokenizer": to_dict(model.config)}
    if model.teacher is not None:
        description["teacher"] = to_dict(model.teacher)
    return save_folder(
        directory,
        state=model.state_dict(),
        description=description,
        card=model_card(model, metrics=metrics),
        max_shard_size=max_shard_size,
    )


def load_tokenizer(
    cls: type[TokenFlowTokenizer],
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: str | torch.device = "cpu",
) -> TokenFlowTokenizer:
    """A tokenizer in eval mode from a folder or a hub repository; strict about names and shapes."""
    directory = find_folder(source, revision=revision, token=token)
    with unchanged(directory):
        config, teacher = read_tokenizer_config(directory)
        state = read_weights(directory, device=device)
    halves = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.dtype in _HALF}
    if halves:
        logger.warning(
            "%s holds %s weights, used as float32: their codes differ from those of the model that was trained.",
            *(directory, " and ".join(sorted(halves))),
        )
        state = {name: value.float() if value.dtype in _HALF else value for name, value in state.items()}
    with torch.device("meta"):
        model = cls(config)
    assign_weights(model, state, source=str(directory))
    model.teacher = teacher
    return model.eval()


def read_tokenizer_config(directory: str | Path) -> tuple[TokenizerConfig, TeacherConfig | None]:
    """(configuration of a tokenizer folder, of the teacher it was trained with if that is known).

    Raises:
        OSError: config.json is missing.
        ValueError: It describes something else.
    """
    from tokenflow.tokenizer.teachers import TeacherConfig

    described = read_description(Path(directory), key="tokenizer")
    teacher = described.get("teacher")
    return (
        from_dict(TokenizerConfig, described["tokenizer"]),
        None if teacher is None else from_dict(TeacherConfig, teacher),
    )


def push_tokenizer(
    model: TokenFlowTokenizer,
    repo_id: str,
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    metrics: Mapping[str, float] | None = None,
    **options: Any,
) -> str:
    """Write the folder to a temporary place and upload it; `options` are those of `push_folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = save_tokenizer(model, temporary, max_shard_size=max_shard_size, metrics=metrics)
        return push_folder(directory, repo_id, **options)

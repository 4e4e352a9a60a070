"""Weights from outside: pretrained towers, and whole tokenizers as safetensors + config.json."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenflow.nn.vision_transformer import VisionTransformerConfig
from tokenflow.tokenizer.config import EncoderKind, TokenizerConfig, from_dict, to_dict
from tokenflow.tokenizer.state_dict import Entry, rename_to_ours, tower_table

if TYPE_CHECKING:
    from tokenflow.tokenizer.model import TokenFlowTokenizer
    from tokenflow.tokenizer.teachers import Teacher

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


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


def save_tokenizer(model: TokenFlowTokenizer, directory: str | Path) -> Path:
    """Write model.safetensors, config.json and README.md (a model card); returns the folder."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    description: dict[str, Any] = {"library": "tokenflow", "tokenizer": to_dict(model.config)}
    if model.teacher is not None:
        description["teacher"] = to_dict(model.teacher)
    # Each under another name first: a killed process leaves no half-written model.
    partial = {name: directory / f".{name}.partial" for name in (WEIGHTS_FILE, CARD_FILE, CONFIG_FILE)}
    save_file(state, partial[WEIGHTS_FILE], metadata={"format": "pt"})
    partial[CONFIG_FILE].write_text(json.dumps(description, indent=2) + "\n")
    partial[CARD_FILE].write_text(_card(model))
    for name, path in partial.items():
        os.replace(path, directory / name)
    return directory


def load_tokenizer(cls: type[TokenFlowTokenizer], source: str | Path) -> TokenFlowTokenizer:
    """A tokenizer in eval mode from a folder or a hub repository; strict about names and shapes."""
    directory = Path(source)
    if not directory.is_dir():
        directory = _download(str(source))
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} is not a tokenizer folder: {name} is missing. Expected what `save_pretrained` writes."
            )
    description = json.loads((directory / CONFIG_FILE).read_text())
    if "tokenizer" not in description:
        raise ValueError(f"{directory / CONFIG_FILE} has no key 'tokenizer'. Expected what `save_pretrained` writes.")
    with torch.device("meta"):
        model = cls(from_dict(TokenizerConfig, description["tokenizer"]))
    model.load_state_dict(load_file(directory / WEIGHTS_FILE), strict=True, assign=True)
    if "teacher" in description:
        from tokenflow.tokenizer.teachers import TeacherConfig

        model.teacher = from_dict(TeacherConfig, description["teacher"])
    return model.eval()


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise OSError(
            f"{source!r} is neither a folder nor a hub repository that can be reached ({error}). Pass the folder that "
            "`save_pretrained` wrote."
        ) from error


def _card(model: TokenFlowTokenizer) -> str:
    config = model.config
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        "---\nlibrary_name: tokenflow\ntags:\n- image-tokenizer\n---\n\n# TokenFlow tokenizer\n\n"
        f"{config.image_size} px images to {config.num_tokens} codes (scales {', '.join(map(str, config.scales))}) "
        f"from {config.codebook_size} entries; branches {', '.join(branch.name for branch in config.branches)}; "
        f"{count:,} parameters.\n\n```python\nfrom tokenflow import TokenFlowTokenizer\n\n"
        'tokenizer = TokenFlowTokenizer.from_pretrained("this folder")\n'
        "codes = tokenizer.encode(images)  # float32 [B, 3, S, S] in [-1, 1] to int64 [B, L]\n"
        "images = tokenizer.decode(codes)\n```\n"
    )

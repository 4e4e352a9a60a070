"""Frozen teachers, which the semantic branch learns to predict (paper, section 3.2), and a small one to train here.

A small teacher is an open_clip model in a folder (open_clip_config.json + open_clip_model.safetensors, the layout
open_clip itself reads), trained by pipelines/teacher_pretrain.py.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenflow.nn.folder import hidden_names, put_in_place, write_tensors, write_text
from tokenflow.nn.vision_transformer import VisionTransformer, VisionTransformerConfig
from tokenflow.tokenizer.config import EncoderKind, Normalization
from tokenflow.tokenizer.encoders import normalize

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A frozen tower and what of it is the target."""

    kind: EncoderKind
    """Family; it names the library the weights are read with."""
    vision: VisionTransformerConfig
    """Sizes."""
    pretrained: str | None = None
    """Weights: None or "random" (tests only), else a tag, hub id, local file or folder."""
    projection_width: int | None = None
    """Width of the tower's output projection, applied to every token (CLIP); None: the tower's own tokens."""
    clamp: bool = False
    """Clamp pixels to [-1, 1] first."""
    normalization: Normalization = "none"
    """Pixel normalisation; CLIP teachers see CLIP's, although the tokenizer's CLIP encoder does not."""
    feature_blocks: tuple[int, ...] = (0, 1, 2)
    """Blocks whose tokens `feature_maps` returns, for the perceptual loss."""

    def __post_init__(self) -> None:
        if self.kind == "convolutional":
            raise ValueError("a teacher is a vision transformer; got kind 'convolutional'. Choose clip, vitamin, ...")
        running = self.vision.depth - self.vision.unused_blocks
        if any(not 0 <= block < running for block in self.feature_blocks):
            raise ValueError(f"feature_blocks must be in 0..{running - 1}; got {self.feature_blocks}.")

    @property
    def width(self) -> int:
        """Channels of the target."""
        return self.projection_width or self.vision.width


class Teacher(nn.Module):
    """A tower that is never trained: no gradients to its weights, eval mode whatever `train` says, fp32."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = VisionTransformer(config.vision)
        self.projection = (
            None
            if config.projection_width is None
            else nn.Linear(config.vision.width, config.projection_width, bias=False)
        )
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N C"]:
        """Images in [-1, 1] to the target tokens [B, N, C], fp32, class token dropped. Without gradients."""
        with torch.autocast(images.device.type, enabled=False):
            tokens = self.tower(self._prepare(images))
            return tokens if self.projection is None else self.projection(tokens)

    def feature_maps(self, images: Float[Tensor, "B 3 S S"]) -> list[Float[Tensor, "B N C"]]:
        """Tokens [B, N, C] after the configured blocks, each scaled to unit length; gradients reach the images.

        Comparing two images' maps by squared difference is a perceptual distance where LPIPS cannot be had.
        """
        with torch.autocast(images.device.type, enabled=False):
            states = self.tower.hidden_states(self._prepare(images))
        return [F.normalize(states[block], dim=-1) for block in self.config.feature_blocks]

    def _prepare(self, images: Tensor) -> Tensor:
        images = images.float()
        return normalize(images.clamp(-1, 1) if self.config.clamp else images, kind=self.config.normalization)


def build_teacher(config: TeacherConfig) -> Teacher:
    """A teacher with its weights; OSError naming the source where they cannot be had."""
    from tokenflow.tokenizer.pretrained import load_pretrained_teacher

    return load_pretrained_teacher(Teacher(config))


@dataclass(frozen=True, kw_only=True)
class SmallClipConfig:
    """Sizes of an open_clip model small enough to train on a CPU."""

    image_size: int = 32
    """Pixels on a side."""
    patch_size: int = 4
    """Pixels a token covers on each side."""
    width: int = 64
    """Channels of the vision tower."""
    depth: int = 3
    """Blocks of the vision tower."""
    heads: int = 4
    """Heads of the vision tower."""
    embedding_width: int = 64
    """Width of the space that images and texts share."""
    pooling: Literal["tok", "avg"] = "tok"
    """What is compared with a text (open_clip's `pool_type`): the class token, or the mean of all patch tokens. The
    tokens that a tokenizer learns are then trained themselves; with a class token the last block's never are."""
    text_width: int = 64
    """Channels of the text tower."""
    text_depth: int = 2
    """Blocks of the text tower."""
    text_heads: int = 4
    """Heads of the text tower."""
    context_length: int = 32
    """Text tokens."""
    vocabulary_size: int = 49408
    """Text vocabulary; open_clip's own tokenizer has 49408 entries."""

    def model_config(self) -> dict:
        """The `model_cfg` that open_clip understands."""
        return {
            "embed_dim": self.embedding_width,
            # DeepSpeed cannot broadcast a parameter without dimensions.
            "nonscalar_logit_scale": True,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.width,
                "layers": self.depth,
                "head_width": self.width // self.heads,
                "pool_type": self.pooling,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": self.vocabulary_size,
                "width": self.text_width,
                "heads": self.text_heads,
                "layers": self.text_depth,
            },
        }


def build_open_clip(config: SmallClipConfig) -> nn.Module:
    """An untrained open_clip.CLIP of these sizes; it reads images in [-1, 1]."""
    model = _open_clip_model(config.model_config())
    model.small_clip_config = config
    return model


def save_teacher(model: nn.Module, directory: str | Path) -> Path:
    """Write a model of `build_open_clip` as a folder that `load_teacher`, `build_teacher` and open_clip read.

    A folder that holds a teacher already holds the old one or the new one at any time, or is refused by `load_teacher`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    description = {"model_cfg": model.small_clip_config.model_config(), "preprocess_cfg": preprocessing}
    with hidden_names(directory) as hidden:
        write_tensors(hidden(WEIGHTS_FILE), model.state_dict())
        write_text(hidden(CONFIG_FILE), json.dumps(description, indent=2) + "\n")
        put_in_place(directory, [WEIGHTS_FILE], last=CONFIG_FILE)
    return directory


def is_teacher_folder(directory: str | Path) -> bool:
    """Whether `save_teacher` wrote this folder to its end."""
    return (Path(directory) / CONFIG_FILE).is_file()


def teacher_tower(directory: str | Path) -> Teacher:
    """The frozen vision tower of a folder written by `save_teacher`, its tokens projected as tokenizers learn them.

    Raises:
        FileNotFoundError: The folder holds no such teacher.
    """
    small = load_teacher(directory).small_clip_config
    config = TeacherConfig(
        kind="open_clip",
        vision=teacher_vision_config(small),
        pretrained=str(directory),
        projection_width=small.embedding_width,
    )
    teacher = build_teacher(config)
    # Wherever the tower is saved next, its weights are there.
    teacher.config = dataclasses.replace(config, pretrained=None)
    return teacher


def load_teacher(directory: str | Path) -> nn.Module:
    """The whole open_clip model (both towers) of a folder written by `save_teacher`."""
    directory = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} is not a teacher folder: {name} is missing. Train one with "
                "`python -m pipelines.teacher_pretrain`."
            )
    model_config = json.loads((directory / CONFIG_FILE).read_text())["model_cfg"]
    model = _open_clip_model(model_config)
    model.load_state_dict(load_file(directory / WEIGHTS_FILE))
    model.small_clip_config = _small_clip_config(model_config)
    return model.eval()


def _small_clip_config(model_config: dict) -> SmallClipConfig:
    vision, text = model_config["vision_cfg"], model_config["text_cfg"]
    return SmallClipConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["width"],
        depth=vision["layers"],
        heads=vision["width"] // vision["head_width"],
        embedding_width=model_config["embed_dim"],
        pooling=vision.get("pool_type", "tok"),
        text_width=text["width"],
        text_depth=text["layers"],
        text_heads=text["heads"],
        context_length=text["context_length"],
        vocabulary_size=text["vocab_size"],
    )


def _open_clip_model(model_config: dict) -> nn.Module:
    from open_clip.model import CLIP

    return CLIP(**model_config)


def teacher_vision_config(config: SmallClipConfig) -> VisionTransformerConfig:
    """Sizes of the vision tower of a small teacher, for `TeacherConfig.vision` and `EncoderConfig.vision`."""
    return VisionTransformerConfig(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_width=4 * config.width,
        patch_size=config.patch_size,
        position_grid=config.image_size // config.patch_size,
        class_token=True,
        patch_bias=False,
        pre_norm=True,
        norm_epsilon=1e-5,
    )

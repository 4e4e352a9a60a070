"""Golden values of the authors' classes, and the rules that made their weights and images.

Two sources: slices kept in `tests/parity/data`, always there, and the whole set in `../shared/parity/public` beside the
checkout, when it is. `goldens("name")` gives one pytest parameter for each source that has the file, so a check runs on
every machine and is whole where the whole set lies. A further set, made with another weight offset, is taken from the
folder `TOKENFLOW_PARITY_DIR` with `TOKENFLOW_PARITY_OFFSET`.

    @pytest.mark.parametrize("golden", goldens("vq_train"))
    def test_quantizer(golden): ...

`python -m tests.parity.fixtures` cuts the slices again from the whole set.
"""

import gzip
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

SLICES_FOLDER = Path(__file__).parent / "data"
SHARED_FOLDER = Path(__file__).parents[3] / "shared" / "parity"
KEYS_FILE = SLICES_FOLDER / "keys_tokenizer.json.gz"
PROMPTS_FILE = SLICES_FOLDER / "i2t_conversations.json"

TOKENIZERS = {
    "clipb_224": "tokenflow-b",
    "clipb_224_enh_interp": "tokenflow-b-256-enhanced",
    "vitamin_xlarge_256": "tokenflow-l",
    "siglip_384": "tokenflow-xl",
}
"""The authors' four released architectures and our presets of them."""

_ALL = np.s_[...]
_FIRST = np.s_[:1]
_COARSE = np.s_[:, :, ::4, ::4]
_ROWS = np.s_[:64]

_TOKENIZER_ENCODE = {
    **dict.fromkeys(("indices", "gap"), _FIRST),
    "sem_z": np.s_[:1, ::4],
    "pix_z": np.s_[:1, :, ::2, ::2],
    "final_quantize": np.s_[:1, :, ::4, ::4],
    "sem_raw_tokens": np.s_[:1, ::5],
    "sem_raw_sel": _ALL,
}
_TOKENIZER_DECODE = {
    **dict.fromkeys(("codes", "sem_tokens"), _FIRST),
    "sel": _ALL,
    "image": np.s_[:1, :, ::8, ::8],
}
_TOKENIZER_DECODE_FEATURES = {
    "recon": np.s_[:1, :, ::8, ::8],
    "sem_recon_tokens": np.s_[:1, ::5],
    "sel": _ALL,
}
_GENERATED = dict.fromkeys(
    (
        *("prefix_cond", "prefix_len", "prefix_uncond", "codes"),
        *("all_call_codes", "all_call_gap", "call_lengths"),
    ),
    _ALL,
)

SLICES: dict[str, dict[str, object]] = {
    "vq_train": {
        "grad_vq_vqkd": _ALL,
        "grad_vq_vqgan": _ALL,
        "grad_entropy_vqkd": _ROWS,
        "grad_entropy_vqgan": _ROWS,
        **dict.fromkeys(("z", "cot", "zq", "idx", "vq_loss", "commit_loss", "entropy_loss"), _ALL),
        **dict.fromkeys(("grad_commit_z", "grad_entropy_z", "grad_ste_z"), _ALL),
    },
    "vq_multiscale_train": {
        **dict.fromkeys(("h", "cot", "scales", "indices", "vq_loss", "commit_loss"), _ALL),
        **dict.fromkeys(("final_quantize", "grad_losses_h", "grad_ste_h"), _FIRST),
        **dict.fromkeys(("grad_losses_vqkd", "grad_losses_vqgan"), _ROWS),
    },
    "vq_multiscale_train_drop4": {
        **dict.fromkeys(("indices", "vq_loss", "commit_loss"), _ALL),
        "final_quantize": _FIRST,
    },
    "vq_multiscale_train_drop_last": {
        **dict.fromkeys(("indices", "vq_loss", "commit_loss"), _ALL),
        "final_quantize": _FIRST,
    },
    "patchgan": {
        **dict.fromkeys(
            ("image_u8", "out_eval", "out_train", "gen_loss_train", "running_mean_3", "running_var_3"), _ALL
        ),
        "grad_x_train": _COARSE,
    },
    "t2i_tower_features": {
        "codes": _ALL,
        "features": np.s_[:, ::8],
        **dict.fromkeys(("features_pred2_rows", "rows"), _ALL),
    },
    "t2i_forward": dict.fromkeys(
        (
            *("input_ids", "codes", "image_start", "inputs_embeds_rows", "inputs_embeds_row_offsets"),
            *("logits_last8_img64", "logits_first_of_scale_img64", "logits_tail", "argmax_img", "argmax_gap"),
            *("argmax_full", "loss_vision"),
        ),
        _ALL,
    ),
    **{f"t2i_generate_{name}": _GENERATED for name in ("padded_top1", "padded_top3", "ragged_top2")},
    "t2i_generate_padded_top2": {**_GENERATED, "image_u8": np.s_[:, ::8, ::8]},
    "preprocess": {
        "image_seed": _ALL,
        **dict.fromkeys((f"hw_{number}" for number in range(3)), _ALL),
        **{f"crop{size}_{number}": np.s_[::4, ::4] for size in (224, 256, 384) for number in range(3)},
        **{f"crop{size}_{number}_sum": _ALL for size in (224, 256, 384) for number in range(3)},
        **{f"siglip_{kind}_{number}": np.s_[:, ::4, ::4] for kind in ("pad", "nopad") for number in range(3)},
        **{f"siglip_pad_{number}_{what}": _ALL for what in ("mean", "std") for number in range(3)},
    },
    **{
        f"i2t_{family}": dict.fromkeys(
            (
                *("input_ids", "attention_mask", "labels", "embeds_rows", "embeds_row_idx", "projected_tokens"),
                *("logits_last", "argmax", "loss"),
            ),
            _ALL,
        )
        for family in ("llama", "qwen2")
    },
    "gan_losses": dict.fromkeys(("logits_real", "logits_fake", "hinge_d", "vanilla_d", "hinge_gen"), _ALL),
    "lpips": {**dict.fromkeys(("image_a", "image_b", "value", "relu1_2", "relu5_3"), _ALL), "grad_b": _COARSE},
    "clip_teacher_target": {"target_tokens": _ALL, "sel": _ALL},
    **{
        f"tok_{name}_{part}": slices
        for name in ("clipb_224", "clipb_224_enh_interp", "vitamin_xlarge_256", "siglip_384")
        for part, slices in (
            ("encode", _TOKENIZER_ENCODE),
            ("decode", _TOKENIZER_DECODE_FEATURES),
            ("decode_code", _TOKENIZER_DECODE),
        )
    },
    # Multimodal models see both pictures.
    "tok_siglip_384_encode": {**_TOKENIZER_ENCODE, "indices": _ALL},
}
"""What of each file is kept here: array name -> slice of the whole array. Other arrays are left out."""


@dataclass(frozen=True)
class Golden:
    """One file of golden values, and how its weights were made."""

    name: str
    path: Path
    whole: bool
    """Whether the arrays are whole or cut as `SLICES` says."""
    offset: int
    """The weight rule's offset."""

    def array(self, name: str) -> Tensor:
        """The stored array, cut or not."""
        with np.load(self.path) as arrays:
            return torch.from_numpy(np.asarray(arrays[name]))

    def sibling(self, name: str) -> "Golden":
        """Another file of the same source."""
        return Golden(name, self.path.with_name(f"{name}.npz"), self.whole, self.offset)

    def close(self, name: str, actual: Tensor, *, atol: float, rtol: float = 0.0) -> None:
        """Assert that `actual`, whole, agrees with the stored array as far as that is kept."""
        if not self.whole:
            actual = actual[SLICES[self.name][name]]
        expected = self.array(name).to(actual.dtype)
        torch.testing.assert_close(actual.detach(), expected, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}")


def goldens(name: str) -> list:
    """One pytest parameter for each source that holds `name`.npz."""
    sources = [("slices", SLICES_FOLDER, False, 0), ("shared", SHARED_FOLDER / "public", True, 0)]
    if folder := os.environ.get("TOKENFLOW_PARITY_DIR"):
        sources.append(("given", Path(folder), True, int(os.environ.get("TOKENFLOW_PARITY_OFFSET", "0"))))
    found = [(label, Golden(name, folder / f"{name}.npz", whole, offset)) for label, folder, whole, offset in sources]
    return [pytest.param(golden, id=label) for label, golden in found if golden.path.is_file()]


_CONSTANT_ENDINGS = ("scaling_layer.shift", "scaling_layer.scale", "codebook_used", "running_mean", "running_var")
_TABLE_ENDINGS = (
    "embedding_vqkd.weight",
    "embedding_vqgan.weight",
    "token_embedding.weight",
    "embed_tokens.weight",
    "lvl_embed.weight",
)
_POSITIONAL = {
    "positional_embedding",
    "pos_embed",
    "pos_1LC",
    "cls_token",
    "class_embedding",
    "probe",
    "image_newline",
}


def weight(key: str, shape: tuple[int, ...], *, offset: int = 0) -> Tensor | None:
    """The fp32 tensor that the rule gives for the authors' state-dict key; None where the constructor's value stays."""
    if not shape or key.endswith(_CONSTANT_ENDINGS):
        return None
    generator = torch.Generator().manual_seed((zlib.crc32(key.encode()) + offset) & 0x7FFFFFFF)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    if key.endswith(_TABLE_ENDINGS):
        return noise / math.sqrt(shape[-1])
    if key.rsplit(".", 1)[-1] in _POSITIONAL or key.endswith("position_embedding.weight"):
        return 0.25 * noise
    if len(shape) == 1:
        return 1 + 0.02 * noise if key.endswith("weight") else 0.02 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def fill(state: Mapping[str, Tensor], *, offset: int = 0) -> dict[str, Tensor]:
    """A state dict under the authors' keys with the rule's values; constants and integers are kept."""
    filled = {}
    for key, value in state.items():
        made = weight(key, tuple(value.shape), offset=offset) if value.is_floating_point() else None
        filled[key] = value.clone() if made is None else made
    return filled


def images(batch: int, size: int, seed: int) -> Tensor:
    """Test pictures uint8 [B, S, S, 3]: waves, blocks of 8 pixels and noise."""
    b, y, x, c = np.meshgrid(*(np.arange(n) for n in (batch, size, size, 3)), indexing="ij")
    # In this order of operations halves round as they did in the stored pictures.
    waves = 127.5 + 60 * np.sin(2 * np.pi * (1 + b + c) * (x / size) + 0.7 * c + 0.3 * seed)
    waves += 40 * np.cos(2 * np.pi * (b + 2) * (y / size) + 0.5 * c * (seed + 1))
    random = np.random.RandomState(1000 + seed)
    blocks = random.randint(-48, 49, (batch, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
    noise = random.randint(-16, 17, (batch, size, size, 3))
    return torch.from_numpy(np.clip(np.round(waves + blocks + noise), 0, 255).astype(np.uint8))


def to_input(pixels: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] to fp32 [B, 3, S, S] in [-1, 1]."""
    return ((pixels.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()


def shared_json(name: str) -> dict | None:
    """A key manifest or configuration of the whole set, or None where that is not beside the checkout."""
    path = SHARED_FOLDER / name
    return json.loads(path.read_text()) if path.is_file() else None


def key_manifest(name: str) -> dict[str, list]:
    """Keys of an authors' tokenizer in their order, each with shape and type; `name` is one of `TOKENIZERS`."""
    whole = shared_json(f"keys_tokenizer_{name}.json")
    return json.loads(gzip.decompress(KEYS_FILE.read_bytes()))[name] if whole is None else whole


def _cut_keys() -> None:
    keys = {name: shared_json(f"keys_tokenizer_{name}.json") for name in TOKENIZERS}
    KEYS_FILE.write_bytes(gzip.compress(json.dumps(keys, separators=(",", ":")).encode(), 9, mtime=0))


def prompts() -> dict[str, dict[str, str]]:
    """The authors' written conversations: template name -> `prompt_one_turn_open`, `prompt_two_turns_closed`."""
    whole = shared_json("i2t_conversations.json")
    return json.loads(PROMPTS_FILE.read_text()) if whole is None else whole


def _cut_prompts() -> None:
    kept = ("prompt_one_turn_open", "prompt_two_turns_closed")
    whole = shared_json("i2t_conversations.json")
    found = {name: {key: whole[name][key] for key in kept} for name in ("plain", "vicuna_v1", "qwen_2_5")}
    PROMPTS_FILE.write_text(json.dumps(found, indent=1) + "\n")


def _cut_slices() -> None:
    SLICES_FOLDER.mkdir(exist_ok=True)
    for name, slices in SLICES.items():
        with np.load(SHARED_FOLDER / "public" / f"{name}.npz") as arrays:
            kept = {key: arrays[key][where] if arrays[key].ndim else arrays[key] for key, where in slices.items()}
        np.savez_compressed(SLICES_FOLDER / f"{name}.npz", **kept)


if __name__ == "__main__":
    _cut_slices()
    _cut_keys()
    _cut_prompts()

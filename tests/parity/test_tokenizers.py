"""The tokenizers compute what the authors' four released architectures compute, from pixels to codes to pixels.

Batch element 0 of each file, as elements are independent. `tokenflow-xl` is slow; the rest run with the other tests.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity.fixtures import SLICES, TOKENIZERS, Golden, fill, goldens, images, key_manifest, to_input, weight
from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.presets import PRESET_TEACHERS, preset, teacher_preset
from tokenflow.tokenizer.state_dict import from_authors, to_authors, tower_table
from tokenflow.tokenizer.teachers import Teacher

NUMBERS = {
    "clipb_224": 181_902_251,
    "clipb_224_enh_interp": 376_569_643,
    "vitamin_xlarge_256": 559_964_145,
    "siglip_384": 554_009_969,
}
"""Numbers in the authors' checkpoint without its usage record."""
TIE = 1e-4
"""Distance gap under which two codes count as equally near."""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_keys_and_shapes_are_those_of_the_authors_checkpoints(name):
    config = preset(TOKENIZERS[name])
    with torch.device("meta"):
        state = TokenFlowTokenizer(config).state_dict()
    shapes = {key: list(value.shape) for key, value in to_authors(config, state).items()}
    assert list(shapes.items()) == [(key, shape) for key, (shape, _) in key_manifest(name).items()]
    assert sum(int(np.prod(shape)) for shape in shapes.values()) - 131_072 == NUMBERS[name]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pictures_are_made_again_bit_for_bit(name):
    for parameter in goldens(f"tok_{name}_encode"):
        golden = parameter.values[0]
        if golden.whole and golden.offset == 0:
            assert torch.equal(golden.array("image_u8"), images(2, preset(TOKENIZERS[name]).image_size, 0))


def build(name: str, *, offset: int) -> TokenFlowTokenizer:
    """Our tokenizer with the rule's weights, brought in under the authors' keys."""
    config = preset(TOKENIZERS[name])
    with torch.device("meta"):
        model = TokenFlowTokenizer(config)
    weights = fill(to_authors(config, model.state_dict()), offset=offset)
    model.load_state_dict(from_authors(config, weights), assign=True)
    return model.eval()


def close(golden: Golden, name: str, actual: Tensor, *, atol: float) -> None:
    """Compare batch element 0 as far as the source keeps it."""
    if not golden.whole:
        actual = actual[SLICES[golden.name][name]]
    expected = golden.array(name)[:1].float()
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, msg=lambda text: f"{name}: {text}")


def check_encode(golden: Golden, model: TokenFlowTokenizer) -> None:
    size = model.config.image_size
    pixels = to_input((golden.array("image_u8") if golden.whole else images(2, size, 0))[:1])
    semantic, pixel = (encoder(pixels) for encoder in model.encoders.values())
    close(golden, "sem_z", semantic.flatten(2).transpose(1, 2), atol=1e-4)
    close(golden, "pix_z", pixel, atol=1e-4)
    quantized = model.quantizer(torch.cat([semantic, pixel], dim=1))
    expected, gap = golden.array("indices")[0].long(), golden.array("gap")[0]
    start = 0
    for scale in model.config.scales:
        part = slice(start, start + scale**2)
        wrong = quantized.indices[0, part] != expected[part]
        assert (gap[part][wrong] < TIE).all(), f"scale {scale}: {int(wrong.sum())} indices differ, not all of them ties"
        if wrong.any():
            return  # a tie decided the other way changes the residual of every later scale
        start += scale**2
    close(golden, "final_quantize", quantized.quantized, atol=1e-5)


def check_teacher_target(golden: Golden, model: TokenFlowTokenizer, name: str) -> None:
    """What the semantic decoder learns to predict; ViTamin's and SigLIP's are the tokenizer's own features."""
    config = dataclasses.replace(teacher_preset(PRESET_TEACHERS[TOKENIZERS[name]]), pretrained="random")
    if config.kind == "clip":
        return  # its target is normalised and projected: `test_the_clip_teachers_target`
    with torch.device("meta"):
        teacher = Teacher(config)
    tower = model.encoders["semantic"].tower.state_dict()
    teacher.tower.load_state_dict({key: tower[key] for key in teacher.tower.state_dict()}, assign=True)
    size = model.config.image_size
    pixels = to_input((golden.array("image_u8") if golden.whole else images(2, size, 0))[:1])
    close(golden, "sem_raw_tokens", teacher.eval()(pixels)[:, golden.array("sem_raw_sel")], atol=1e-4)


def check_decode(golden: Golden, encoded: Golden, model: TokenFlowTokenizer) -> None:
    """From the stored quantised features; slices do not keep them whole, so there they are looked up from the codes."""
    if golden.whole:
        features = encoded.array("final_quantize")[:1]
    else:
        features = model.quantizer.decode_indices(encoded.array("indices")[:1].long())
        close(encoded, "final_quantize", features, atol=1e-6)
    reconstruction, semantic = model._decode(features)
    close(golden, "recon", reconstruction, atol=2e-3)
    close(golden, "sem_recon_tokens", semantic[:, golden.array("sel")], atol=1e-4)


def check_decode_codes(golden: Golden, model: TokenFlowTokenizer) -> None:
    codes = golden.array("codes")[:1].long()
    total = model.quantizer.decode_indices(codes)
    reconstruction, semantic = model._decode(total)
    close(golden, "image", reconstruction, atol=2e-3)
    close(golden, "sem_tokens", semantic[:, golden.array("sel")], atol=1e-4)


def check(golden: Golden, name: str) -> None:
    model = build(name, offset=golden.offset)
    with torch.inference_mode():
        check_encode(golden, model)
        check_teacher_target(golden, model, name)
        check_decode(golden.sibling(f"tok_{name}_decode"), golden, model)
        check_decode_codes(golden.sibling(f"tok_{name}_decode_code"), model)


@pytest.mark.parametrize("golden", goldens("tok_clipb_224_encode")[-1:])
def test_tokenflow_b(golden):
    check(golden, "clipb_224")


@pytest.mark.parametrize("golden", goldens("tok_clipb_224_enh_interp_encode")[-1:])
def test_tokenflow_b_at_256_with_the_enhanced_decoder(golden):
    check(golden, "clipb_224_enh_interp")


@pytest.mark.parametrize("golden", goldens("tok_vitamin_xlarge_256_encode")[-1:])
def test_tokenflow_l(golden):
    check(golden, "vitamin_xlarge_256")


@pytest.mark.slow
@pytest.mark.parametrize("golden", goldens("tok_siglip_384_encode")[-1:])
def test_tokenflow_xl(golden):
    check(golden, "siglip_384")


@pytest.mark.parametrize("golden", goldens("clip_teacher_target")[-1:])
def test_the_clip_teachers_target(golden):
    teacher = Teacher(teacher_preset("clip-b16", pretrained="random"))
    state = {}
    for entry in tower_table("clip", teacher.config.vision):
        shape = tuple(teacher.tower.state_dict()[entry.ours].shape)
        state[entry.ours] = weight(f"visual.{entry.theirs[0]}", shape, offset=golden.offset)
    teacher.tower.load_state_dict(state)
    projection = weight("visual.proj", (768, 512), offset=golden.offset)
    teacher.projection.load_state_dict({"weight": projection.T})
    pixels = to_input((golden.array("image_u8") if golden.whole else images(2, 224, 3))[:1])
    close(golden, "target_tokens", teacher(pixels)[:, golden.array("sel")], atol=1e-4)

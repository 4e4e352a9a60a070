import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from tokenflow.nn.conv_resnet import ConvResnetConfig
from tokenflow.nn.mobile_stem import MobileStemConfig
from tokenflow.nn.vision_transformer import VisionTransformer, VisionTransformerConfig
from tokenflow.tokenizer.config import BranchConfig, EncoderConfig
from tokenflow.tokenizer.encoders import CLIP_DEVIATION, CLIP_MEAN, BranchEncoder, prepare_images
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.pretrained import tower_weights

SIGLIP = VisionTransformerConfig(
    width=32,
    depth=3,
    heads=4,
    mlp_width=48,
    patch_size=4,
    position_grid=4,
    final_norm=False,
    activation="gelu_tanh",
    unused_blocks=1,
    unused_head=True,
)
VITAMIN = VisionTransformerConfig(
    width=384,
    depth=2,
    heads=6,
    mlp_width=768,
    stem=MobileStemConfig(channels=(64, 128, 384)),
    final_norm=False,
    mlp="gated",
)


def test_siglip_tower_equals_transformers_second_last_hidden_state(tmp_path):
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    reference = SiglipVisionModel(config).eval()
    reference.save_pretrained(tmp_path)
    tower = VisionTransformer(SIGLIP)
    tower.load_state_dict(tower_weights("siglip", str(tmp_path), vision=SIGLIP))
    images = torch.randn(2, 3, 16, 16)
    expected = reference(images, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tower(images), expected, atol=1e-5, rtol=1e-5)


def test_vitamin_tower_equals_timm_without_its_last_norm(tmp_path):
    reference = timm.create_model("vitamin_small_224", img_size=64, depth=2, pos_embed="none", num_classes=0).eval()
    for parameter in reference.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    torch.save(
        {f"visual.trunk.{name}": value for name, value in reference.state_dict().items()}, tmp_path / "vitamin.bin"
    )
    tower = VisionTransformer(VITAMIN)
    tower.load_state_dict(tower_weights("vitamin", str(tmp_path), vision=VITAMIN))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(tower(images), reference.forward_features(images), atol=1e-4, rtol=1e-4)


def test_pixels_are_clamped_and_normalised_as_the_fields_say():
    images = torch.linspace(-1.5, 1.5, 3 * 16).view(1, 3, 4, 4)
    siglip = preset("tokenflow-xl").branches[0].encoder
    torch.testing.assert_close(prepare_images(images, config=dataclasses.replace(siglip)), images.clamp(-1, 1))
    vitamin = preset("tokenflow-l").branches[0].encoder
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (CLIP_MEAN, CLIP_DEVIATION))
    expected = (((images + 1) * 127.5).clamp(0, 255) / 255 - mean) / deviation
    torch.testing.assert_close(prepare_images(images, config=vitamin), expected, atol=1e-5, rtol=1e-5)
    clip = preset("tokenflow-b").branches[0].encoder
    assert prepare_images(images, config=clip) is images


def test_the_pixel_branch_of_xl_reads_432_pixels():
    images = torch.randn(1, 3, 384, 384)
    resized = prepare_images(images, config=preset("tokenflow-xl").branches[1].encoder)
    torch.testing.assert_close(resized, F.interpolate(images, size=(432, 432), mode="bicubic", align_corners=False))


def test_a_branch_gives_a_map_of_its_code_width():
    convolutional = ConvResnetConfig(channels=8, multipliers=(1, 2), latent_channels=6, norm_groups=4)
    for encoder in (
        EncoderConfig(kind="convolutional", convolutional=convolutional),
        EncoderConfig(kind="siglip", vision=dataclasses.replace(SIGLIP, patch_size=2, position_grid=8)),
    ):
        branch = BranchEncoder(BranchConfig(name="any", encoder=encoder, code_width=5))
        assert branch(torch.randn(2, 3, 16, 16)).shape == (2, 5, 8, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "clip"},
        {"kind": "convolutional", "vision": SIGLIP},
        {"kind": "convolutional", "convolutional": ConvResnetConfig(), "pretrained": "openai"},
    ],
)
def test_contradictory_encoders_are_refused(fields):
    with pytest.raises(ValueError, match="encoder"):
        EncoderConfig(**fields)

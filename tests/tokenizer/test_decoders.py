import torch

from tokenflow.nn.conv_resnet import ConvResnetConfig
from tokenflow.nn.vision_transformer import VisionTransformerConfig
from tokenflow.tokenizer.config import PixelDecoderConfig, SemanticDecoderConfig
from tokenflow.tokenizer.decoders import PixelDecoder, SemanticDecoder


def test_semantic_decoder_predicts_one_teacher_token_a_cell():
    vision = VisionTransformerConfig(
        width=16, depth=1, heads=2, mlp_width=16, patch_size=1, in_channels=5, position_grid=4, class_token=True
    )
    decoder = SemanticDecoder(SemanticDecoderConfig(vision=vision, out_width=7))
    assert decoder(torch.randn(2, 5, 4, 4)).shape == (2, 16, 7)


def test_pixel_decoder_resizes_to_the_image_where_its_grid_gives_another_size():
    small = ConvResnetConfig(channels=8, multipliers=(1, 1), blocks=1, latent_channels=6, norm_groups=4)
    for image_size in (6, 8):
        decoder = PixelDecoder(PixelDecoderConfig(convolutional=small), code_width=3, image_size=image_size)
        assert decoder(torch.randn(2, 3, 4, 4)).shape == (2, 3, image_size, image_size)

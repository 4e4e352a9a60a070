import dataclasses

import pytest
import torch

from tokenflow.nn.conv_resnet import ConvDecoder, ConvEncoder, ConvResnetConfig, Downsample, SpatialAttention

SMALL = ConvResnetConfig(channels=8, multipliers=(1, 2), blocks=1, latent_channels=6, norm_groups=4)


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2, 2)])
def test_encoder_and_decoder_mirror_each_other(fold, multipliers):
    config = dataclasses.replace(SMALL, fold=fold, multipliers=multipliers)
    images = torch.randn(2, 3, 16, 16)
    latents = ConvEncoder(config)(images)
    assert latents.shape == (2, 6, 16 // config.reduction, 16 // config.reduction)
    assert ConvDecoder(config)(latents).shape == images.shape


def test_downsample_pads_right_and_bottom_only():
    module = Downsample(1)
    torch.nn.init.ones_(module.conv.weight)
    torch.nn.init.zeros_(module.conv.bias)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    result = module(image)[0, 0]
    assert result.shape == (2, 2)
    assert result[0, 0] == image[0, 0, :3, :3].sum()
    assert result[1, 1] == image[0, 0, 2:, 2:].sum()


def test_attention_equals_its_formula():
    module = SpatialAttention(8, norm_groups=4)
    x = torch.randn(2, 8, 3, 3)
    query, key, value = (m(module.norm(x)).flatten(2) for m in (module.query, module.key, module.value))
    weights = (query.transpose(1, 2) @ key / 8**0.5).softmax(-1)
    mixed = (value @ weights.transpose(1, 2)).view(2, 8, 3, 3)
    torch.testing.assert_close(module(x), x + module.output(mixed), atol=1e-5, rtol=1e-5)


def test_attention_is_only_at_the_lowest_resolution():
    names = {name for name, module in ConvDecoder(SMALL).named_modules() if isinstance(module, SpatialAttention)}
    assert names == {"middle.attention", "levels.0.attentions.0", "levels.0.attentions.1"}
    config = dataclasses.replace(SMALL, attention=False)
    assert not any(isinstance(module, SpatialAttention) for module in ConvDecoder(config).modules())


def test_channels_that_the_norm_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="norm_groups"):
        dataclasses.replace(SMALL, norm_groups=3)

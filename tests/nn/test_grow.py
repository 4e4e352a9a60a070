import pytest
import torch

from tokenflow.nn.conv_resnet import ConvDecoder, ConvResnetConfig
from tokenflow.nn.grow import enlarged, grow_decoder

SMALL = ConvResnetConfig(channels=8, multipliers=(1, 2, 2), blocks=1, latent_channels=6, norm_groups=4)


def grown(config: ConvResnetConfig, *, channel_factor: int, block_factor: int) -> tuple[ConvDecoder, ConvDecoder]:
    torch.manual_seed(0)
    smaller = ConvDecoder(config)
    for parameter in smaller.parameters():  # no ones and zeros that would hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    larger = ConvDecoder(enlarged(config, channel_factor=channel_factor, block_factor=block_factor))
    generator = torch.Generator().manual_seed(1)
    return smaller, grow_decoder(smaller, larger, channel_factor=channel_factor, generator=generator)


@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("fold", [1, 2])
def test_a_grown_decoder_computes_what_the_smaller_one_does(factors, attention, fold):
    config = ConvResnetConfig(**{**vars(SMALL), "attention": attention, "fold": fold})
    smaller, larger = grown(config, channel_factor=factors[0], block_factor=factors[1])
    latents = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        expected = smaller(latents)
        torch.testing.assert_close(larger(latents), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_copies_of_a_channel_learn_different_things():
    _, larger = grown(SMALL, channel_factor=2, block_factor=2)
    larger(torch.randn(2, 6, 5, 5)).square().mean().backward()
    gradient = larger.levels[0].blocks[0].conv1.weight.grad
    first, second = gradient[0::2], gradient[1::2]
    assert (first - second).abs().max() > 0.01 * gradient.abs().max()


def test_additional_blocks_begin_as_the_identity_and_receive_gradients():
    _, larger = grown(SMALL, channel_factor=1, block_factor=3)
    added = larger.levels[1].blocks[-1]
    features = torch.randn(1, 16, 4, 4)
    assert torch.equal(added(features), features)
    larger(torch.randn(2, 6, 5, 5)).square().mean().backward()
    assert added.conv2.weight.grad.abs().max() > 0


def test_doubling_gives_the_sizes_of_the_papers_enhanced_decoder():
    assert enlarged(ConvResnetConfig()) == ConvResnetConfig(channels=256, blocks=4)


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match="channel_factor is 0; expected at least 1"):
        enlarged(SMALL, channel_factor=0)

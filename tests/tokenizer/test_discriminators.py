import pytest
import torch

from tokenflow.tokenizer.discriminators import (
    Discriminator,
    PatchDiscriminator,
    StyleDiscriminator,
    build_discriminator,
)


@pytest.mark.parametrize(("image_size", "layers", "patches"), [(32, 3, 2), (64, 3, 6), (64, 2, 14), (16, 1, 6)])
def test_patchgan_gives_one_logit_a_patch(image_size, layers, patches):
    discriminator = build_discriminator("patchgan", image_size=image_size, channels=8, layers=layers)
    assert discriminator.network(torch.randn(2, 3, image_size, image_size)).shape == (2, 1, patches, patches)


@pytest.mark.parametrize("image_size", [8, 27, 32, 56])
def test_stylegan_gives_one_logit_an_image_of_any_size(image_size):
    discriminator = build_discriminator("stylegan", image_size=image_size, channels=8)
    assert discriminator.network(torch.randn(2, 3, image_size, image_size)).shape == (2, 1)


def test_stylegan_keeps_the_variance_of_its_input():
    # Equalised learning rate: at initialisation each block hands on about unit variance.
    network = StyleDiscriminator(image_size=32, channels=32)
    x = torch.randn(8, 32, 1, 1).expand(8, 32, 32, 32)  # flat, because the blur takes noise away
    assert 0.2 < network.blocks[:1](x).var() < 5
    assert 0.1 < network.blocks(x).var() < 10


def test_minibatch_deviation_sees_a_lack_of_variety():
    deviation = StyleDiscriminator(image_size=8, channels=4).deviation
    same = torch.randn(1, 5, 4, 4).expand(4, -1, -1, -1)
    assert deviation(same)[:, -1].abs().max() < 1e-3
    varied = torch.randn(8, 5, 4, 4)
    channel = deviation(varied)[:, -1]
    for first in (0, 1):  # groups of four: image i joins group i modulo 2
        expected = varied[first::2].var(0, unbiased=False).sqrt().mean()
        torch.testing.assert_close(channel[first::2], expected.expand(4, 4, 4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_minibatch_deviation_takes_any_batch_with_finite_gradients(batch):
    network = StyleDiscriminator(image_size=8, channels=4)
    images = torch.zeros(batch, 3, 8, 8, requires_grad=True)
    network(images).sum().backward()
    assert images.grad.isfinite().all()


def test_blur_keeps_constants_and_halving_is_centred():
    network = StyleDiscriminator(image_size=8, channels=4)
    constant = torch.full((1, 4, 8, 8), 3.0)
    torch.testing.assert_close(network.blocks[0].blur(constant), constant)
    ramp = torch.arange(8.0).expand(1, 4, 8, 8)
    blurred = network.blocks[0].blur(ramp)[..., ::2]
    assert blurred[0, 0, 4].tolist()[1:3] == [2.5, 4.5]  # between the two pixels it stands for


@pytest.mark.parametrize("kind", ["patchgan", "stylegan"])
def test_real_and_fake_are_judged_separately(kind):
    discriminator = build_discriminator(kind, image_size=32, channels=8)
    assert isinstance(discriminator, Discriminator)
    real, fake = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32) * 5 + 2
    state = {key: value.clone() for key, value in discriminator.state_dict().items()}
    logits_real, _ = discriminator(real, fake)
    discriminator.load_state_dict(state)
    torch.testing.assert_close(logits_real, discriminator.network(real))


@pytest.mark.parametrize("kind", ["patchgan", "stylegan"])
def test_discriminator_learns_to_tell_two_kinds_of_pictures_apart(kind):
    discriminator = build_discriminator(kind, image_size=16, channels=8, layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    for _ in range(15):
        real = (torch.rand(8, 3, 1, 1) * 2 - 1).expand(8, 3, 16, 16)  # flat colours against noise
        logits_real, logits_fake = discriminator(real, torch.rand(8, 3, 16, 16) * 2 - 1)
        loss = torch.nn.functional.softplus(-logits_real).mean() + torch.nn.functional.softplus(logits_fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits_real.mean() > logits_fake.mean() + 0.5


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 24"):
        build_discriminator("patchgan", image_size=16)
    with pytest.raises(ValueError, match="Use patchgan"):
        build_discriminator("stylegan", image_size=4)
    with pytest.raises((ValueError, TypeError), match="'stylegan'"):
        build_discriminator("none", image_size=32)
    with pytest.raises(ValueError, match="layers"):
        PatchDiscriminator(layers=0)
    with pytest.raises(ValueError, match="16 x 16"):
        StyleDiscriminator(image_size=16, channels=4)(torch.randn(1, 3, 32, 32))

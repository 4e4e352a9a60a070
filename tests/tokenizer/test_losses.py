import lpips
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenflow.tokenizer.losses import (
    FeatureDistance,
    LearnedPerceptualLoss,
    TokenizerLossConfig,
    adaptive_weight,
    adversarial_weight,
    build_perceptual_loss,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
    semantic_loss,
)


@pytest.fixture(scope="module")
def learned() -> LearnedPerceptualLoss:
    return LearnedPerceptualLoss("random")


def pictures(size=16):
    return torch.rand(2, 3, size, size) * 2 - 1


def test_semantic_loss_is_half_the_squared_distance_of_unit_vectors():
    a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    expected = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean() / 2
    torch.testing.assert_close(semantic_loss(a, b), expected)
    assert semantic_loss(a, 3 * a) < 1e-6


def test_losses_are_fp32_for_half_precision_predictions():
    a, b = pictures(), pictures()
    assert reconstruction_loss(a.bfloat16(), b).dtype == torch.float32
    assert semantic_loss(a.flatten(2).bfloat16(), b.flatten(2)).dtype == torch.float32
    assert discriminator_loss(a.bfloat16(), b.bfloat16(), kind="hinge").dtype == torch.float32
    assert generator_loss(a.bfloat16(), kind="non_saturating").dtype == torch.float32


def test_adversarial_losses_match_their_definitions():
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    hinge = ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()) / 2
    torch.testing.assert_close(discriminator_loss(real, fake, kind="hinge"), hinge)
    log_likelihood = F.binary_cross_entropy_with_logits
    entropy = log_likelihood(real, torch.ones_like(real)) + log_likelihood(fake, torch.zeros_like(fake))
    torch.testing.assert_close(discriminator_loss(real, fake, kind="vanilla"), entropy / 2)
    torch.testing.assert_close(discriminator_loss(real, fake, kind="non_saturating"), entropy)
    torch.testing.assert_close(generator_loss(fake, kind="hinge"), -fake.mean())
    torch.testing.assert_close(generator_loss(fake, kind="vanilla"), -fake.mean())
    fooled = log_likelihood(fake, torch.ones_like(fake))
    torch.testing.assert_close(generator_loss(fake, kind="non_saturating"), fooled)


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non_saturating"])
def test_the_two_players_pull_the_fake_logits_apart(kind):
    # What the authors' non-saturating losses, their arguments swapped, do not do.
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    real_gradient, fake_gradient = torch.autograd.grad(discriminator_loss(real, fake, kind=kind), (real, fake))
    (generator_gradient,) = torch.autograd.grad(generator_loss(fake, kind=kind), fake)
    assert (real_gradient < 0).all()
    assert (fake_gradient > 0).all()
    assert (generator_gradient < 0).all()


def test_unknown_adversarial_loss_is_refused():
    with pytest.raises((ValueError, TypeError), match="'hinge', 'vanilla'"):
        discriminator_loss(torch.zeros(1), torch.zeros(1), kind="wasserstein")
    with pytest.raises((ValueError, TypeError), match="'hinge', 'vanilla'"):
        generator_loss(torch.zeros(1), kind="wasserstein")


def test_adversarial_weight_is_zero_then_ramps_to_its_full_value():
    config = TokenizerLossConfig(
        discriminator_start=5, adversarial_start=10, adversarial_ramp=4, adversarial_weight=0.8
    )
    weights = [adversarial_weight(step, config) for step in range(16)]
    assert weights == pytest.approx([0.0] * 10 + [0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    at_once = TokenizerLossConfig(adversarial_start=3, adversarial_weight=0.5)
    assert [adversarial_weight(step, at_once) for step in (2, 3, 4)] == [0.0, 0.5, 0.5]
    none = TokenizerLossConfig(adversarial_start=0, discriminator="none")
    assert adversarial_weight(100, none) == 0.0


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_image():
    pull, push = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(adaptive_weight(pull, push), pull.norm() / push.norm(), atol=1e-3, rtol=1e-3)
    assert adaptive_weight(pull * 1e9, push * 0) == 1e4


def test_lpips_equals_the_package(learned):
    a, b = pictures(), pictures()
    torch.testing.assert_close(learned.distance(a, b), learned.network(a, b).flatten(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(learned(a, b), learned.network(a, b).mean(), atol=1e-6, rtol=1e-5)
    assert learned(a, a) == 0


def test_lpips_stays_frozen_and_without_dropout_in_a_training_parent(learned):
    parent = nn.Sequential(learned).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in learned.parameters())
    a, b = pictures(), pictures()
    assert torch.equal(learned(a, b), learned(a, b))


def test_lpips_is_fp32_under_autocast(learned):
    a, b = pictures(), pictures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = learned(a, b)
    torch.testing.assert_close(cast, learned(a, b), atol=1e-6, rtol=1e-5)


def test_lpips_gradient_is_finite_for_black_images(learned):
    image = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(learned(image, pictures(16)[:1]), image)
    assert gradient.isfinite().all()


def test_vgg_weights_load_from_torchvisions_file(learned, tmp_path):
    # torchvision numbers the convolutions in one sequence, lpips keeps the numbers inside its slices.
    state = {
        f"features.{name.rsplit('.', 1)[1]}.{part}": torch.randn_like(getattr(module, part))
        for name, module in learned.network.net.named_modules()
        if isinstance(module, nn.Conv2d)
        for part in ("weight", "bias")
    }
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    loaded = LearnedPerceptualLoss(str(tmp_path / "vgg16.pth"))
    assert torch.equal(loaded.network.net.slice1[0].weight, state["features.0.weight"])
    assert torch.equal(loaded.network.net.slice5[5].bias, state["features.28.bias"])
    torch.save({"features.0.weight": state["features.0.weight"]}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lack .*features\.28\.bias"):
        LearnedPerceptualLoss(str(tmp_path / "other.pth"))


def test_linear_heads_are_the_calibrated_ones(learned):
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    assert torch.equal(learned.network.lin2.model[1].weight, reference.lin2.model[1].weight)
    assert (learned.network.lin2.model[1].weight >= 0).all()


def test_missing_vgg_weights_name_the_file_and_the_option(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth.*perceptual_checkpoint"):
        LearnedPerceptualLoss(str(tmp_path / "absent.pth"))

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(OSError, match=r"vgg16-397923af\.pth.*no route to host.*perceptual_checkpoint.*teacher"):
        build_perceptual_loss(TokenizerLossConfig())


def feature_maps(images):
    return [F.avg_pool2d(images, 2), images.flatten(2).transpose(1, 2)]


def test_feature_distance_averages_maps_and_tokens():
    a, b = pictures(8), pictures(8)
    expected = [
        (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
        for x, y in ((F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)), (a, b))
    ]
    torch.testing.assert_close(FeatureDistance(feature_maps)(a, b), torch.stack(expected).mean())


def test_feature_distance_trains_the_image_and_not_the_teacher():
    teacher = nn.Conv2d(3, 4, 3)
    loss = FeatureDistance(lambda images: [teacher(images)])
    assert not list(loss.parameters())
    image = pictures(8).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(image, pictures(8))
    assert value.dtype == torch.float32
    value.backward()
    assert image.grad.abs().sum() > 0


def test_feature_distance_does_not_adopt_a_module():
    loss = FeatureDistance(nn.Identity())
    assert not list(loss.modules())[1:]


def test_perceptual_loss_is_what_the_configuration_names():
    assert build_perceptual_loss(TokenizerLossConfig(perceptual="none")) is None
    teacher = build_perceptual_loss(TokenizerLossConfig(perceptual="teacher"), feature_maps=feature_maps)
    assert isinstance(teacher, FeatureDistance)
    with pytest.raises(ValueError, match="there is no teacher"):
        build_perceptual_loss(TokenizerLossConfig(perceptual="teacher"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adversarial_weight": -1.0}, "adversarial_weight"),
        ({"perceptual_weight": float("nan")}, "perceptual_weight"),
        ({"discriminator_channels": 0}, "discriminator_channels"),
        ({"adversarial_ramp": -1}, "adversarial_ramp"),
        ({"discriminator_start": 100, "adversarial_start": 50}, "untrained discriminator"),
    ],
)
def test_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizerLossConfig(**fields)

"""LPIPS and the adversarial losses compute what the authors' compute."""

import pytest
import torch

from tests.parity.fixtures import fill, goldens, to_input
from tokenflow.tokenizer.losses import LearnedPerceptualLoss, discriminator_loss, generator_loss


@pytest.fixture(scope="module")
def lpips_module() -> LearnedPerceptualLoss:
    return LearnedPerceptualLoss("random")


def authors_lpips_state(module: LearnedPerceptualLoss, offset: int) -> dict[str, torch.Tensor]:
    # The package lists its heads twice (lin0... and lins.0...), the authors once.
    state = module.network.state_dict()
    filled = fill({key: value for key, value in state.items() if not key.startswith("lins.")}, offset=offset)
    return filled | {key: filled[key.replace("lins.", "lin")] for key in state if key.startswith("lins.")}


@pytest.mark.parametrize("golden", goldens("lpips"))
def test_lpips(golden, lpips_module):
    lpips_module.network.load_state_dict(authors_lpips_state(lpips_module, golden.offset))
    a, b = to_input(golden.array("image_a")), to_input(golden.array("image_b")).requires_grad_()
    distance = lpips_module.distance(a, b)
    golden.close("value", distance.view(-1, 1, 1, 1), atol=1e-6)
    (gradient,) = torch.autograd.grad(distance.sum(), b)
    golden.close("grad_b", gradient, atol=1e-7)


@pytest.mark.parametrize("golden", goldens("gan_losses"))
def test_adversarial_losses(golden):
    real, fake = golden.array("logits_real"), golden.array("logits_fake")
    golden.close("hinge_d", discriminator_loss(real, fake, kind="hinge"), atol=1e-6)
    golden.close("vanilla_d", discriminator_loss(real, fake, kind="vanilla"), atol=1e-6)
    golden.close("hinge_gen", generator_loss(fake, kind="hinge"), atol=1e-6)

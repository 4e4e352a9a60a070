"""PatchGAN computes what the authors' NLayerDiscriminator computes."""

import pytest
import torch

from tests.parity.fixtures import fill, goldens, shared_json, to_input
from tokenflow.tokenizer.discriminators import PatchDiscriminator
from tokenflow.tokenizer.losses import generator_loss


@pytest.mark.parametrize("golden", goldens("patchgan"))
def test_patchgan(golden):
    network = PatchDiscriminator(channels=64, layers=3)
    network.load_state_dict(fill(network.state_dict(), offset=golden.offset))
    images = to_input(golden.array("image_u8"))
    with torch.no_grad():
        golden.close("out_eval", network.eval()(images), atol=1e-5)
    images.requires_grad_()
    logits = network.train()(images)
    loss = generator_loss(logits, kind="hinge")
    golden.close("out_train", logits, atol=1e-4)
    golden.close("gen_loss_train", loss, atol=1e-5)
    golden.close("grad_x_train", torch.autograd.grad(loss, images)[0], atol=1e-6)
    golden.close("running_mean_3", network.main[3].running_mean, atol=1e-6)
    golden.close("running_var_3", network.main[3].running_var, atol=1e-6)


def test_patchgan_has_the_authors_keys():
    expected = shared_json("keys_discriminator_patchgan.json")
    state = PatchDiscriminator(channels=64, layers=3).state_dict()
    actual = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()}
    assert expected is None or actual == expected
    assert {"main.0.bias", "main.2.weight", "main.9.running_var", "main.11.bias"} <= set(actual)
    assert len(actual) == 22

import dataclasses

import jaxtyping
import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.config import BranchConfig
from tokenflow.tokenizer.presets import preset


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return TokenFlowTokenizer(preset("tokenflow-nano")).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def unchecked():
    """Shape annotations off: the call is as a user's, whose values the tokenizer checks itself."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def test_forward_gives_images_teacher_tokens_codes_and_losses(tokenizer, images):
    output = tokenizer(images)
    assert output.reconstruction.shape == images.shape
    assert output.semantic.shape == (3, 64, 64)
    assert output.indices.shape == (3, 85)
    assert output.indices.dtype == torch.int64
    for loss in (output.codebook_loss, output.commitment_loss, output.entropy_loss):
        assert loss.ndim == 0


def test_outputs_are_tuples_which_zero_3_hooks_traverse(tokenizer, images):
    assert isinstance(tokenizer(images), tuple)
    assert isinstance(tokenizer.quantizer(torch.randn(1, 24, 8, 8)), tuple)
    assert isinstance(tokenizer.quantizer.quantizer(torch.randn(1, 24, 8, 8)), tuple)


def test_codes_round_trip_through_the_decoder(tokenizer, images):
    codes = tokenizer.encode(images)
    output = tokenizer(images)
    assert torch.equal(codes, output.indices)
    expected = output.reconstruction.detach().clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(codes), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.reconstruct(images), tokenizer.decode(codes))
    torch.testing.assert_close(tokenizer.decode_semantic(codes), output.semantic.detach(), atol=1e-5, rtol=1e-5)


def test_images_of_a_batch_are_independent(tokenizer, images):
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(alone, tokenizer.encode(images))


def test_a_prefix_of_whole_scales_decodes(tokenizer, images):
    codes = tokenizer.encode(images)
    for length in (1, 5, 21):
        assert tokenizer.decode(codes[:, :length]).shape == images.shape
    with pytest.raises(ValueError, match="scales"):
        tokenizer.decode(codes[:, :3])


def test_features_of_table_8(tokenizer, images):
    codes = tokenizer.encode(images)
    last = tokenizer.features(codes)
    assert last.shape == (3, 64, 24)
    assert torch.equal(tokenizer.features(codes, "semantic"), last[..., :16])
    residuals = tokenizer.features(codes, "residuals")
    assert residuals.shape == (3, 85, 24)
    torch.testing.assert_close(residuals[..., :16].norm(dim=-1), torch.ones(3, 85))
    every = tokenizer.features(codes, "all_scales")
    assert every.shape == (3, 85, 24)
    torch.testing.assert_close(every[:, -64:], last)
    torch.testing.assert_close(every[:, 0], residuals[:, 0])


def test_an_unknown_strategy_lists_the_known_ones(tokenizer, unchecked):
    with pytest.raises(ValueError, match="all_scales"):
        tokenizer.features(torch.zeros(1, 85, dtype=torch.int64), "first_scale")


def test_scale_inputs_are_one_row_a_later_position(tokenizer, images):
    rows = tokenizer.scale_inputs(tokenizer.encode(images))
    assert rows.shape == (3, 84, 24)
    first = tokenizer.features(tokenizer.encode(images), "residuals")[:, :1]
    torch.testing.assert_close(rows[:, :4], first.expand(-1, 4, -1))


def test_every_trainable_parameter_gets_a_gradient(images):
    tokenizer = TokenFlowTokenizer(preset("tokenflow-nano"))
    output = tokenizer(images)
    loss = (output.reconstruction - images).square().mean() + output.semantic.square().mean()
    (loss + output.codebook_loss + output.commitment_loss).backward()
    without = [name for name, p in tokenizer.named_parameters() if p.requires_grad and (p.grad is None)]
    assert without == []


def test_a_dropped_scale_leaves_the_shapes(tokenizer, images):
    output = tokenizer(images, dropped_scale=2)
    assert output.indices.shape == (3, 85)
    assert output.reconstruction.shape == images.shape


def test_the_quantiser_reads_fp32_under_autocast(tokenizer, images):
    seen = []
    hook = tokenizer.quantizer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = tokenizer(images)
    hook.remove()
    assert seen == [torch.float32]
    assert output.reconstruction.dtype == output.semantic.dtype == torch.float32


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 3, 64, 64), "32"),
        (torch.zeros(3, 32, 32), r"\[B, 3, 32, 32\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "127.5"),
        (torch.full((1, 3, 32, 32), 200.0), "127.5"),
    ],
)
def test_wrong_images_are_refused_with_the_remedy(tokenizer, unchecked, bad, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(bad)


def test_wrong_codes_are_refused(tokenizer, unchecked):
    with pytest.raises(ValueError, match="int64"):
        tokenizer.decode(torch.zeros(1, 85))
    with pytest.raises(ValueError, match="int64"):
        tokenizer.decode(torch.zeros(85, dtype=torch.int64))


def test_three_branches_share_one_index(images):
    config = preset("tokenflow-nano")
    third = dataclasses.replace(config.branches[1], name="detail", code_width=4)
    reads = dataclasses.replace(config.pixel_decoder, reads=("pixel", "detail"))
    tokenizer = TokenFlowTokenizer(
        dataclasses.replace(config, branches=(*config.branches, third), pixel_decoder=reads)
    ).eval()
    codes = tokenizer.encode(images)
    assert codes.shape == (3, 85)
    assert tokenizer.features(codes).shape == (3, 64, 28)
    assert tokenizer.decode(codes).shape == images.shape


def test_single_branches_make_the_classic_tokenizers(images):
    config = preset("tokenflow-nano")
    semantic, pixel = config.branches
    assert isinstance(semantic, BranchConfig)
    pixels_only = TokenFlowTokenizer(dataclasses.replace(config, branches=(pixel,), semantic_decoder=None, scales=(8,)))
    output = pixels_only(images)
    assert output.semantic is None
    assert output.indices.shape == (3, 64)
    semantic_only = TokenFlowTokenizer(dataclasses.replace(config, branches=(semantic,), pixel_decoder=None))
    assert semantic_only(images).reconstruction is None
    with pytest.raises(ValueError, match="pixel decoder"):
        semantic_only.decode(semantic_only.encode(images))
    with pytest.raises(ValueError, match="semantic decoder"):
        pixels_only.decode_semantic(pixels_only.encode(images))


def test_nano_at_64_pixels_has_the_same_codes_shape():
    tokenizer = TokenFlowTokenizer(preset("tokenflow-nano-64"))
    assert tokenizer.reconstruct(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    assert tokenizer.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 85)

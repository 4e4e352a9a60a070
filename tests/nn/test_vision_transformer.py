import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tokenflow.nn.vision_transformer import SelfAttention, VisionTransformer, VisionTransformerConfig

SMALL = VisionTransformerConfig(
    width=24, depth=3, heads=3, mlp_width=48, patch_size=4, position_grid=4, class_token=True
)


def naive_attention(module: SelfAttention, x: torch.Tensor) -> torch.Tensor:
    width, heads = x.shape[-1], module.heads
    weight = module.query_key_value.weight
    zeros = torch.zeros(width)
    biases = (module.query_bias, zeros, module.value_bias) if module.query_bias is not None else (zeros, zeros, zeros)
    if module.query_key_value.bias is not None:
        biases = module.query_key_value.bias.split(width)
    query, key, value = (x @ w.T + b for w, b in zip(weight.split(width), biases, strict=True))
    size = width // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
        outputs.append(scores.softmax(-1) @ value[..., part])
    return module.output(torch.cat(outputs, dim=-1))


@pytest.mark.parametrize("attention_bias", ["full", "query_value"])
def test_attention_equals_a_loop_over_heads(attention_bias):
    module = SelfAttention(dataclasses.replace(SMALL, attention_bias=attention_bias))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(module(x), naive_attention(module, x), atol=1e-5, rtol=1e-5)


def test_tokens_are_row_major_and_without_the_class_token():
    images = torch.randn(2, 3, 16, 16)
    model = VisionTransformer(SMALL).eval()
    tokens = model(images)
    assert tokens.shape == (2, 16, 24)
    assert len(model.hidden_states(images)) == 3
    # Without position embeddings a transformer is equivariant: mirrored patches give mirrored tokens.
    torch.nn.init.zeros_(model.position_embedding)
    cells = tokens.new_tensor(range(16)).long().view(4, 4)
    patches = images.view(2, 3, 4, 4, 4, 4)
    mirrored = patches.flip(4).reshape(2, 3, 16, 16)
    torch.testing.assert_close(model(mirrored), model(images)[:, cells.flip(1).flatten()], atol=1e-5, rtol=1e-5)


def test_positions_are_resized_at_the_factor_with_its_offset():
    config = dataclasses.replace(SMALL, position_interpolation_offset=0.1, class_token=False)
    model = VisionTransformer(config)
    resized = model._positions((6, 6))
    table = model.position_embedding.view(1, 4, 4, 24).permute(0, 3, 1, 2)
    # torch samples at (destination + 0.5) / factor - 0.5 with factor 6.1 / 4, which is not what size=(6, 6) does.
    expected = F.interpolate(table, scale_factor=6.1 / 4, mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized, expected.flatten(2)[0].T)
    by_size = F.interpolate(table, size=(6, 6), mode="bicubic", align_corners=False).flatten(2)[0].T
    assert (resized - by_size).abs().max() > 1e-3
    assert model._positions((4, 4)) is model.position_embedding


def test_unused_parts_are_frozen_and_change_nothing():
    used = VisionTransformer(dataclasses.replace(SMALL, depth=2))
    whole = VisionTransformer(dataclasses.replace(SMALL, unused_blocks=1, unused_head=True))
    whole.load_state_dict(used.state_dict(), strict=False)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(whole(images), used(images), atol=0, rtol=0)
    whole(images).sum().backward()
    frozen = {name for name, parameter in whole.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in whole.named_parameters() if parameter.grad is None}
    assert all(name.startswith(("blocks.2.", "unused_head.")) for name in frozen)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 5}, "multiple of heads"), ({"unused_blocks": 3}, "unused_blocks")],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)

"""The training forward: what it predicts from where, and what it refuses."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.generation.tiny import SCALES, build, build_quantizer, class_config, texts, tiny_config
from tokenflow.generation.text_field import class_tokens, pad_rows

LENGTHS = (7, 3, 5)


def batch(config, lengths=LENGTHS):
    quantizer = build_quantizer(config)
    codes = torch.randint(config.codebook_size, (len(lengths), config.num_codes))
    return texts(config, *lengths), codes, quantizer.scale_inputs(codes).detach()


def naive_loss(model, text, codes, features, *, padding):
    """One row after another, with a written-out mask and no padding."""
    config, losses = model.config, []
    levels = [i for i, scale in enumerate(config.scales) for _ in range(scale**2)]
    for row, length in enumerate(text.lengths):
        ids = text.row(row)
        rows = [model.language.embed_tokens(ids) + model.scale_embedding.weight[0]]
        rows[0][-1] += model.image_positions.weight[0]
        image = model.projector(features[row]) + model.image_positions.weight[1:]
        rows.append(image + model.scale_embedding.weight[torch.tensor(levels[1:]) + 1])
        x = torch.cat(rows)
        level = torch.tensor([-1] * (length - 1) + levels)
        order = torch.arange(len(x))
        mask = (order[None] <= order[:, None]) | ((level[None] <= level[:, None]) & (level[None] >= 0))
        first = padding - length if config.text_positions == "field" else 0
        hidden = transformer(model.language, x, mask, order + first)
        logits = hidden[length - 1 :] @ model.head.weight.T
        losses.append(F.cross_entropy(logits, codes[row] + model.head.first_code))
    return torch.stack(losses).mean()


def transformer(language, x, mask, positions):
    """The layers by their definition (post-norm, QK-norm, rotary positions)."""
    config = language.config
    angle = positions[:, None] * 10000.0 ** (-torch.arange(0, config.head_width, 2) / config.head_width)
    cosine, sine = angle.cos(), angle.sin()

    def norm(x, module):
        return x * (x.pow(2).mean(-1, keepdim=True) + module.epsilon).rsqrt() * module.weight

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)

    for layer in language.layers:
        attention = layer.self_attn
        q, k, v = (
            p(x).unflatten(1, (-1, config.head_width)).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = rotate(norm(q, attention.query_norm)), rotate(norm(k, attention.key_norm))
        weights = (q @ k.transpose(1, 2) / config.head_width**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        mixed = attention.o_proj((weights @ v).transpose(0, 1).flatten(1))
        x = x + norm(mixed, layer.input_layernorm)
        mlp = layer.mlp
        x = x + norm(mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)), layer.post_attention_layernorm)
    return norm(x, language.norm)


@pytest.mark.parametrize("positions", ["field", "row"])
def test_loss_equals_the_definition_row_by_row(positions):
    config = tiny_config(text_positions=positions)
    model = build(config)
    text, codes, features = batch(config)
    output = model(text.ids, codes, features)
    expected = naive_loss(model, text, codes, features, padding=config.field_length)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)


def test_the_width_of_the_padding_changes_nothing():
    config = tiny_config()
    model = build(config)
    text, codes, features = batch(config, (4, 3))
    wide = pad_rows([text.row(0).tolist(), text.row(1).tolist()], pad_token=39, columns=config.field_length)
    torch.testing.assert_close(model(text.ids, codes, features).loss, model(wide.ids, codes, features).loss)


def test_a_row_does_not_see_the_others():
    config = tiny_config()
    model = build(config)
    text, _, features = batch(config)
    together = model.hidden(text.ids, features, text_lengths=text.lengths)
    for row in range(len(LENGTHS)):
        alone = model.hidden(text.ids[row : row + 1], features[row : row + 1], text_lengths=text.lengths[row : row + 1])
        torch.testing.assert_close(together[row, 6:], alone[0, 6:], atol=1e-5, rtol=1e-5)


def test_losses_and_accuracies_of_the_scales_make_up_the_whole():
    config = tiny_config()
    model = build(config)
    text, codes, features = batch(config)
    output = model(text.ids, codes, features)
    shares = torch.tensor([scale**2 for scale in SCALES]) / config.num_codes
    torch.testing.assert_close((output.scale_losses * shares).sum(), output.loss.detach())
    torch.testing.assert_close((output.scale_accuracies * shares).sum(), output.accuracy)


def test_the_closing_text_is_learned_with_the_image():
    config = tiny_config(image_close=(5, 2))
    model = build(config)
    text, codes, features = batch(config)
    hidden = model.hidden(text.ids, features, text_lengths=text.lengths, closing=2)
    assert hidden.shape[1] == 7 + config.num_codes - 1 + 2
    logits = hidden[:, 6:] @ model.head.weight.T
    targets = torch.cat([codes + 40, torch.tensor([[5, 2]]).expand(3, -1)], dim=1)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(text.ids, codes, features).loss, expected)


def test_every_parameter_but_unused_rows_learns():
    config = tiny_config()
    model = build(config)
    text, codes, features = batch(config)
    model(text.ids, codes, features).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.scale_embedding.weight.grad[1].abs().sum() == 0  # the row of scale 1 is never an input


def test_class_prompts_are_one_token():
    config = class_config()
    model = build(config)
    text = class_tokens([0, 2, None], config)
    codes = torch.randint(32, (3, config.num_codes))
    output = model(text.ids, codes, build_quantizer(config).scale_inputs(codes))
    assert text.ids.tolist() == [[0], [2], [3]] and output.loss.isfinite()
    with pytest.raises(ValueError, match="class 3 does not exist"):
        class_tokens([3], config)


def test_one_image_is_learned_by_heart():
    config = tiny_config(loss_over="codes", head_rows="codes")
    torch.manual_seed(0)
    model = build(config).train()
    text, codes, features = batch(config, (4,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = model(text.ids, codes, features)
        output.loss.backward()
        optimizer.step()
    assert output.accuracy == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c, f: (t, c + 32, f), "codes run from 32"),
        (lambda t, c, f: (t, c - 40, f), "codes run from -"),
        (lambda t, c, f: (t, c[:, :-1], f), r"expected \[B, 14\]"),
        (lambda t, c, f: (t, c, f[:, :-1]), "what tokenizer.scale_inputs"),
        (lambda t, c, f: (t, c, f[..., :-1]), "Check code_width"),
        (lambda t, c, f: (t.repeat(1, 2), c, f), "Cut it to text_length"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    config = tiny_config()
    text, codes, features = batch(config)
    with pytest.raises(ValueError, match=message):
        build(config)(*change(text.ids, codes, features))


def test_bf16_is_near_fp32():
    config = tiny_config()
    model = build(config)
    text, codes, features = batch(config)
    exact = model(text.ids, codes, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(text.ids, codes, features)
    half = model.bfloat16()(text.ids, codes, features)
    for output in (mixed, half):
        assert output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss, exact.loss, atol=0.05, rtol=0)


def test_layers_computed_again_in_backward_learn_the_same():
    config = tiny_config()
    again = dataclasses.replace(config, language=dataclasses.replace(config.language, checkpointing="layer"))
    text, codes, features = batch(config)
    gradients = []
    for each in (config, again):
        model = build(each)
        model(text.ids, codes, features).loss.backward()
        gradients.append(model.language.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_tokens_count_by_their_scale_and_closing_text_counts_once():
    config = tiny_config(image_close=(5, 2))
    model = build(config)
    text, codes, features = batch(config)
    output = model(text.ids, codes, features, scale_weights=(4.0, 3.0, 0.5))
    hidden = model.hidden(text.ids, features, text_lengths=text.lengths, closing=2)
    logits = hidden[:, text.ids.shape[1] - 1 :] @ model.head.weight.T
    targets = torch.cat([codes + 40, torch.tensor([[5, 2]]).expand(3, -1)], dim=1)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    first, second, third, closing = losses.split([1, 4, 9, 2], dim=1)
    expected = (4 * first.sum() + 3 * second.sum() + 0.5 * third.sum() + closing.sum()) / (4 + 12 + 4.5 + 2) / 3
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    means = torch.stack([first.mean(), second.mean(), third.mean()])
    torch.testing.assert_close(output.scale_losses, means, atol=1e-5, rtol=1e-5)
    same = model(text.ids, codes, features, scale_weights=(1.0, 1.0, 1.0)).loss
    torch.testing.assert_close(same, model(text.ids, codes, features).loss)

"""The model and its batches: images in their places, losses where labels are, packing without a trace."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tests.understanding.tiny import FEATURE_WIDTH, IMAGE_TOKENS, build, conversation, features, tiny_config
from tokenflow.language.hf_export import save_hf_language
from tokenflow.language.transformer import CausalTransformer
from tokenflow.ops.attention_layout import AttentionLayout
from tokenflow.tokenizer.presets import PRESETS as TOKENIZERS
from tokenflow.understanding.backbone import backbone_config, language_weights
from tokenflow.understanding.batching import collate, pack, spliced_length
from tokenflow.understanding.config import for_tower
from tokenflow.understanding.conversation_tokens import IGNORE, IMAGE_TOKEN, Tokens
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.presets import preset
from tokenflow.understanding.projector import grid_coordinates, merged, surrounded, whitening

LENGTHS = ((9, 1), (14, 2), (6, 0), (11, 1), (5, 0))
"""Tokens and images of some conversations."""


@pytest.fixture(scope="module")
def model():
    return build(tiny_config())


def conversations():
    return [conversation(length, images=images, seed=n) for n, (length, images) in enumerate(LENGTHS)]


def make(samples, **options):
    return collate(samples, **{"image_tokens": IMAGE_TOKENS, "max_length": 64} | options)


def naive_losses(model, tokens, images):
    """One conversation by itself: embeddings put together by hand, logits everywhere, shifted cross-entropy."""
    rows, labels, places = [], [], []
    images = iter(images)
    for token, label in zip(*tokens, strict=True):
        if token == IMAGE_TOKEN:
            rows.append(model.projector(next(images)))
            first, side = len(labels), math.isqrt(IMAGE_TOKENS)
            places += [(first + row, first + column) for row in range(side) for column in range(side)]
            labels += [IGNORE] * IMAGE_TOKENS
        else:
            places.append((len(labels), len(labels)))
            rows.append(model.language.embed_tokens(torch.tensor([token])))
            labels.append(label)
    embeddings = torch.cat(rows)[None]
    positions = torch.tensor([places]) if model.config.rotary == "grid" else None
    hidden = model.language(embeddings, layout=AttentionLayout.causal(1, len(labels)), positions=positions)
    logits = hidden[0] @ model.head.weight.T
    losses = F.cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=IGNORE, reduction="none")
    return losses[torch.tensor(labels[1:]) != IGNORE]


@pytest.mark.parametrize("rotary", ["sequence", "grid"])
@pytest.mark.parametrize("packing", ["none", "rows"])
def test_loss_and_gradients_equal_each_conversation_by_itself(packing, rotary):
    model = build(tiny_config(rotary=rotary))
    samples, images = conversations(), features(4)
    batch = make(samples, packing=packing, max_length=32)
    found = model(batch, images)
    parts = iter(images.split([count for _, count in LENGTHS]))
    losses = torch.cat([naive_losses(model, tokens, next(parts)) for tokens in samples])
    torch.testing.assert_close(found.loss, losses.mean(), atol=1e-5, rtol=1e-5)
    assert int(found.tokens) == len(losses)
    expected = torch.autograd.grad(losses.mean(), list(model.parameters()))
    gradients = torch.autograd.grad(found.loss, list(model.parameters()))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_packing_fills_rows_and_positions_begin_anew():
    packed, padded = make(conversations(), packing="rows", max_length=32), make(conversations())
    assert len(packed.ids) == 2 and len(padded.ids) == 5
    lengths = [spliced_length(tokens, image_tokens=IMAGE_TOKENS) for tokens in conversations()]
    assert sorted(sample.text for row in packed.layout.rows for sample in row) == sorted(lengths)
    for row, samples in enumerate(packed.layout.rows):
        for sample in samples:
            assert packed.positions[row, sample.start : sample.end].tolist() == list(range(sample.text))
    assert len(packed.targets) == len(padded.targets)


def test_pack_takes_the_first_row_with_room():
    assert pack([5, 4, 3, 6, 1], capacity=9) == [[0, 1], [2, 3], [4]]
    assert pack([9, 9], capacity=9) == [[0], [1]]


def test_each_image_stands_where_it_was_asked_for(model):
    images = features(4)
    batch = make(conversations())
    embedded = model.embed(batch.ids, batch.image_rows, images)
    projected = model.projector(images)
    torch.testing.assert_close(embedded[0, 1 : 1 + IMAGE_TOKENS], projected[0])
    torch.testing.assert_close(embedded[1, 1 : 1 + IMAGE_TOKENS], projected[1])
    torch.testing.assert_close(embedded[1, 2 + IMAGE_TOKENS : 2 + 2 * IMAGE_TOKENS], projected[2])
    torch.testing.assert_close(embedded[3, 1 : 1 + IMAGE_TOKENS], projected[3])


def test_an_image_reaches_its_own_conversation_alone(model):
    batch = make(conversations(), packing="rows", max_length=64)
    images = features(4)
    before = model.hidden(batch, images)
    images[0] += 1
    changed = (model.hidden(batch, images) - before).abs().amax(-1) > 1e-5
    samples = [(row, sample) for row, found in enumerate(batch.layout.rows) for sample in found]
    first = samples[0][1]
    assert changed[0, first.start + 1 : first.end].all()
    assert all(not changed[row, sample.start : sample.end].any() for row, sample in samples[1:])


def test_what_does_not_fit_is_cut_even_through_an_image(model):
    tokens = conversation(14, images=2, seed=1)
    batch = make([tokens, conversation(6, images=0, seed=2)], max_length=9)
    assert batch.ids.shape == (2, 9) and batch.cut == (11, 0) and batch.num_images == 2
    assert batch.image_rows[0].tolist() == [-1, 0, 1, 2, 3, -1, 4, 5, 6]
    assert model(batch, features(2)).loss.isfinite()


def test_text_alone_runs_the_projector_and_moves_it_not(model):
    batch = make([conversation(9, images=0, seed=0)])
    loss = model(batch).loss
    gradients = torch.autograd.grad(loss, list(model.projector.parameters()))
    assert all(not gradient.any() for gradient in gradients)
    torch.testing.assert_close(loss, model(batch, features(0)).loss)


def test_a_batch_that_teaches_nothing_has_no_loss_and_finite_gradients(model):
    tokens = conversation(9, images=1, seed=0)
    batch = make([Tokens(tokens.ids, [IGNORE] * 9)])
    found = model(batch, features(1))
    assert (found.loss.item(), int(found.tokens)) == (0.0, 0)
    assert all(not gradient.any() for gradient in torch.autograd.grad(found.loss, list(model.parameters())))


def test_the_first_token_is_never_predicted_from_the_conversation_before():
    tokens = Tokens([3, 4, 5], [3, 4, 5])
    batch = make([tokens, tokens], packing="rows", max_length=8)
    assert batch.predict_at.tolist() == [0, 1, 3, 4] and batch.targets.tolist() == [4, 5, 4, 5]


@pytest.mark.parametrize(
    ("images", "message"), [(None, "4 images and there are no features"), (3, "features are"), (5, "features are")]
)
def test_features_must_be_those_of_the_batch(model, images, message):
    with pytest.raises(ValueError, match=message):
        model(make(conversations()), None if images is None else features(images))


@pytest.mark.parametrize(("name", "layers"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_projectors_have_their_layers_under_llavas_names(name, layers):
    projector = MultimodalModel(tiny_config(projector=name)).projector
    names = [f"{2 * n}.{part}" for n, part in itertools.product(range(layers), ("weight", "bias"))]
    assert list(projector.state_dict()) == names
    assert projector(torch.randn(2, FEATURE_WIDTH)).shape == (2, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projector": "mlpx_gelu"}, "projector is 'mlpx_gelu'"),
        ({"image_tokens": 64}, "no text would be left"),
        ({"max_length": 100}, "max_positions 64"),
    ],
)
def test_bad_configurations_say_what_was_expected(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(("side", "count"), [(2, 1), (8, 8), (27, 4)])
def test_coordinates_tell_places_apart_and_neighbours_alike(side, count):
    places = grid_coordinates(side**2, count)
    assert places.shape == (side**2, 4 * count) and places.abs().max() <= 1
    distances = torch.cdist(places, places).view(side, side, side, side)
    assert distances.flatten(0, 1).flatten(1).add(9 * torch.eye(side**2)).min() > 0.05
    # a place's column and row are known apart: one step right changes the first half alone
    right = places.view(side, side, -1)[0, 1] - places.view(side, side, -1)[0, 0]
    assert right[: 2 * count].norm() > 0.05 and right[2 * count :].norm() == 0
    if side > 2:
        assert (
            distances[0, 0, 0, 1] < distances[0, 0, 0, side - 1]
            and distances[0, 0, 1, 0] < distances[0, 0, side - 1, 0]
        )


def test_the_projector_reads_coordinates_beside_features():
    model = build(tiny_config(coordinates=3))
    samples, images = [conversation(9, images=1, seed=0)], features(1)
    batch = make(samples)
    places = grid_coordinates(IMAGE_TOKENS, 3)
    expected = model.projector(torch.cat([images[0], places], dim=-1))
    first = samples[0].ids.index(IMAGE_TOKEN)
    torch.testing.assert_close(model.embed_batch(batch, images)[0, first : first + IMAGE_TOKENS], expected)
    alike = images.mean(1, keepdim=True).expand(-1, IMAGE_TOKENS, -1)
    assert len(model.embed_batch(batch, alike)[0, first : first + IMAGE_TOKENS].unique(dim=0)) == IMAGE_TOKENS


def test_merged_features_are_neighbours_side_by_side():
    grid = torch.arange(16.0).view(1, 16, 1) + torch.tensor([0.0, 100.0])
    found = merged(grid, 2)
    assert found.shape == (1, 4, 8)
    assert found[0, :, 0::2].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(found[..., 1::2], found[..., 0::2] + 100) and merged(grid, 1) is grid


def test_an_image_of_merged_features_takes_fewer_positions():
    config = tiny_config(merge=2, coordinates=2)
    model = build(config)
    assert config.features_per_image == 4 * IMAGE_TOKENS
    images = torch.randn(1, 4 * IMAGE_TOKENS, FEATURE_WIDTH)
    batch = make([conversation(9, images=1, seed=0)])
    first = int((batch.image_rows[0] >= 0).nonzero()[0])
    expected = model.projector(torch.cat([merged(images, 2)[0], grid_coordinates(IMAGE_TOKENS, 2)], dim=-1))
    torch.testing.assert_close(model.embed_batch(batch, images)[0, first : first + IMAGE_TOKENS], expected)
    # a rank without an image runs the projector too
    assert model(make([conversation(9, images=0, seed=0)])).loss.isfinite()
    with pytest.raises(ValueError, match=rf"expected \(1, {4 * IMAGE_TOKENS}, {FEATURE_WIDTH}\)"):
        model.embed_batch(batch, images[:, :IMAGE_TOKENS])


def test_merging_takes_the_sizes_of_a_tower():
    tower = TOKENIZERS["tokenflow-nano"]
    config = preset("nano")
    found = for_tower(dataclasses.replace(config, merge=2, image_tokens=16), tower)
    assert found.image_tokens == 16 and found.feature_width == config.feature_width
    assert found.projector_width == 4 * config.feature_width
    assert backbone_config(config.language, tower, merge=2, max_length=256).image_tokens == 16
    with pytest.raises(ValueError, match=r"merge is 3 and an image has 64 features \(last_scale\)"):
        for_tower(dataclasses.replace(config, merge=3), tower)
    with pytest.raises(ValueError, match=r"merge is 2 and an image has 85 features \(all_scales\)"):
        backbone_config(config.language, tower, merge=2, features="all_scales")
    with pytest.raises(ValueError, match="merge is 0; expected 1 or more"):
        tiny_config(merge=0)
    with pytest.raises(ValueError, match="merge is -1; expected 1 or more"):
        backbone_config(config.language, tower, merge=-1)
    with pytest.raises(ValueError, match=r"merge is 2 and an image has 20 features \(last_scale\)"):
        tiny_config(merge=2, image_tokens=5)
    with pytest.raises(ValueError, match=r"merge is 2 and an image has 16 features \(residuals\)"):
        tiny_config(merge=2, features="residuals")


def test_a_feature_is_surrounded_by_its_neighbours_and_zeros_beyond_the_border():
    grid = torch.arange(1.0, 10).view(1, 9, 1) + torch.tensor([0.0, 100.0])
    found = surrounded(grid, 3)
    assert found.shape == (1, 9, 18) and surrounded(grid, 1) is grid
    assert found[0, 4, :9].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found[0, 0, :9].tolist() == [0, 0, 0, 0, 1, 2, 0, 4, 5]
    assert found[0, 5, 9:].tolist() == [102, 103, 0, 105, 106, 0, 108, 109, 0]


def test_whitened_channels_are_uncorrelated_and_equally_strong():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.9, 0.1, 0.0], [0.3, 0.0, 0.02]])
    rows = torch.randn(4000, 3, generator=generator) @ mixing.T + torch.tensor([5.0, -3.0, 0.0])
    weight, bias = whitening(rows, floor=1e-9)
    found = rows @ weight.T + bias
    torch.testing.assert_close(torch.cov(found.T), torch.eye(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    # a direction that hardly varies stays quiet under a floor
    weight, bias = whitening(rows, floor=0.1)
    assert torch.linalg.eigvalsh(torch.cov((rows @ weight.T + bias).T))[0] < 0.05
    with pytest.raises(ValueError, match="1 features cannot be whitened"):
        whitening(rows[:1])
    with pytest.raises(ValueError, match="all 7 features are equal"):
        whitening(torch.ones(7, 3))


def test_the_projector_reads_whitened_neighbours():
    config = tiny_config(neighbourhood=3, whiten=True, coordinates=2)
    model = build(config)
    images = features(1)
    batch = make([conversation(9, images=1, seed=0)])
    first = int((batch.image_rows[0] >= 0).nonzero()[0])
    read = torch.cat([surrounded(model.whitening(images), 3)[0], grid_coordinates(IMAGE_TOKENS, 2)], dim=-1)
    found = model.embed_batch(batch, images)[0, first : first + IMAGE_TOKENS]
    torch.testing.assert_close(found, model.projector(read))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model._what_is_read(images).dtype == torch.float32
    model(batch, images).loss.backward()
    assert model.whitening.weight.grad is None and model.projector[0].weight.grad.abs().sum() > 0
    assert model(make([conversation(9, images=0, seed=0)])).loss.isfinite()


def test_first_weights_whiten_with_given_features(tmp_path):
    torch.manual_seed(0)
    config = dataclasses.replace(preset("nano"), whiten=True)
    language = CausalTransformer(config.language).state_dict()
    head = torch.randn(config.language.vocabulary_size, config.language.width)
    save_hf_language(tmp_path, config=config.language, weights=language, head=head)
    rows = torch.randn(500, config.feature_width)
    model = MultimodalModel(config)
    model.load_state_dict(dict(language_weights(config, tmp_path, features=rows).items()))
    torch.testing.assert_close(torch.cov(model.whitening(rows).T), torch.eye(len(rows[0])), rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="whiten is true; pass features"):
        language_weights(config, tmp_path)


@pytest.mark.parametrize("fields", [{"neighbourhood": 2}, {"neighbourhood": 0}, {"neighbourhood": -1}])
def test_a_neighbourhood_has_a_centre(fields):
    with pytest.raises(ValueError, match=f"neighbourhood is {fields['neighbourhood']} .* expected an odd number"):
        tiny_config(**fields)


def test_a_neighbourhood_needs_a_square_grid():
    with pytest.raises(ValueError, match="neighbourhood is 3 and an image takes 5 positions"):
        tiny_config(neighbourhood=3, image_tokens=5)


def test_merged_features_have_merged_neighbours():
    config = tiny_config(neighbourhood=3, merge=2, image_tokens=9)
    assert config.projector_width == 36 * config.feature_width
    model = build(config)
    images = torch.randn(2, 36, config.feature_width)
    read = model._what_is_read(images)
    assert read.shape == (2, 9, config.projector_width)
    torch.testing.assert_close(read, surrounded(merged(images, 2), 3))


def test_a_grid_of_positions_changes_what_images_say_and_text_alone_not():
    samples, images = conversations(), features(4)
    sequence, grid = (build(tiny_config(rotary=rotary)) for rotary in ("sequence", "grid"))
    grid.load_state_dict(sequence.state_dict())
    text = make([sample for sample in samples if not sample.num_images])
    assert torch.equal(grid(text).loss, sequence(text).loss)
    batch = make(samples)
    assert not torch.allclose(grid(batch, images).loss, sequence(batch, images).loss)
    with pytest.raises(ValueError, match="rotary is 'grid' and an image takes 5 positions"):
        tiny_config(rotary="grid", image_tokens=5)


def test_coordinates_need_a_square_grid():
    with pytest.raises(ValueError, match="coordinates is 2 and an image takes 5 positions"):
        tiny_config(coordinates=2, image_tokens=5)
    with pytest.raises(ValueError, match="coordinates is -1"):
        tiny_config(coordinates=-1)

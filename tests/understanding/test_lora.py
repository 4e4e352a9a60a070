"""Adapters: what learns, that they start as nothing, that merged they are the same model, also under DeepSpeed."""

import copy
import dataclasses
import sys

import pytest
import torch

from tests.understanding.tiny import IMAGE_TOKENS, build, conversation, features, tiny_config
from tokenflow import train
from tokenflow.train import distributed
from tokenflow.train.weights import iterate_state
from tokenflow.understanding.batching import collate
from tokenflow.understanding.lora import (
    LoraOptions,
    adapted_weights,
    add_lora,
    lora_to_plain,
    merge_lora,
    plain_to_lora,
)
from tokenflow.understanding.model import MultimodalModel

OPTIONS = LoraOptions(rank=4, alpha=12.0, dropout=0.3)
ONE_BATCH = [(9, 1), (14, 2)]
BATCHES = [ONE_BATCH, [(6, 0), (8, 0)], [(9, 1), (6, 0)], [(12, 1), (5, 0)]]
"""Tokens and images of each step's conversations."""


def batch_of(conversations):
    rows = [conversation(length, images=images, seed=n) for n, (length, images) in enumerate(conversations)]
    return collate(rows, image_tokens=IMAGE_TOKENS, max_length=64)


def hidden(model, conversations=ONE_BATCH):
    batch = batch_of(conversations)
    with torch.no_grad():
        return model.eval().hidden(batch, features(batch.num_images))


def adapted(config, *, options=OPTIONS, seed=0, busy=False):
    """An adapted model with the weights of `build`; `busy` adapters have a B."""
    model = MultimodalModel(config)
    add_lora(model, options)
    model.load_state_dict(dict(adapted_weights(build(config).state_dict(), config, options, seed=seed)))
    if busy:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=generator)
    return model


def test_adapters_and_the_projector_learn_and_nothing_else():
    model = adapted(tiny_config())
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name in model.state_dict() if "lora_" in name or name.startswith("projector.")}
    # Two layers, seven linear layers each.
    assert sum("lora_" in name for name in learning) == 2 * 7 * 2


def test_layers_can_be_chosen():
    options = dataclasses.replace(OPTIONS, targets=("q_proj", "v_proj"))
    names = [name for name in adapted(tiny_config(), options=options).state_dict() if "lora_A" in name]
    assert len(names) == 2 * 2 and all(name.split(".")[-4] in options.targets for name in names)


def test_an_adapted_model_starts_as_the_plain_one():
    config = tiny_config()
    torch.testing.assert_close(hidden(adapted(config)), hidden(build(config)), rtol=0, atol=0)


def test_new_adapters_are_a_function_of_seed_and_name():
    weights = build(tiny_config()).state_dict()
    first, same, other = (dict(adapted_weights(weights, tiny_config(), OPTIONS, seed=seed)) for seed in (0, 0, 1))
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name]) for name in names)
    assert not torch.equal(first[names[0]], first[names[1]])
    # As peft draws them: uniform up to 1 / sqrt(inputs).
    for name in names:
        bound = first[name].shape[1] ** -0.5
        assert 0.8 * bound < first[name].abs().max() <= bound


def test_plain_weights_are_read_when_asked_for_and_once():
    reads = []

    class Watched(dict):
        def __getitem__(self, name):
            reads.append(name)
            return super().__getitem__(name)

    weights = Watched(build(tiny_config()).state_dict())
    lazy = adapted_weights(weights, tiny_config(), OPTIONS)
    # The type checks of these tests look at one value.
    assert len(set(reads)) <= 1
    reads.clear()
    assert len(list(lazy.items())) == len(adapted(tiny_config()).state_dict())
    assert sorted(reads) == sorted(weights)


def test_names_go_back_and_forth():
    for name in build(tiny_config()).state_dict():
        assert lora_to_plain(plain_to_lora(name, OPTIONS)) == name


def test_merged_weights_compute_what_peft_computes():
    config = tiny_config()
    model = adapted(config, busy=True)
    plain = MultimodalModel(config)
    before = copy.deepcopy(model.state_dict())
    plain.load_state_dict(merge_lora(model.state_dict(), OPTIONS))
    expected = hidden(model)
    torch.testing.assert_close(hidden(plain), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, hidden(build(config)), atol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for module in model.modules():
        if hasattr(module, "merge"):
            module.merge()
    layer = model.language.layers[1].mlp.down_proj.base_layer
    torch.testing.assert_close(plain.language.layers[1].mlp.down_proj.weight, layer.weight, rtol=1e-5, atol=1e-6)


def test_merging_new_adapters_gives_the_weights_back():
    config = tiny_config()
    plain = build(config).state_dict()
    merged = merge_lora(adapted_weights(plain, config, OPTIONS), OPTIONS)
    assert merged.keys() == plain.keys()
    assert all(torch.equal(merged[name], value) for name, value in plain.items())


def test_bf16_is_merged_in_fp32():
    state = {name: value.bfloat16() for name, value in adapted(tiny_config(), busy=True).state_dict().items()}
    merged = merge_lora(state, OPTIONS)
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    owner = "language.layers.0.self_attn.k_proj"
    base, a, b = (state[f"{owner}.{end}.weight"].float() for end in ("base_layer", "lora_A.default", "lora_B.default"))
    assert torch.equal(merged[f"{owner}.weight"], (base + 3.0 * b @ a).bfloat16())


def test_dropout_is_of_training_alone():
    model = adapted(tiny_config(), busy=True)
    batch = batch_of(ONE_BATCH)
    images = features(batch.num_images)
    assert torch.equal(hidden(model), hidden(model))
    model.train()
    assert not torch.equal(model.hidden(batch, images), model.hidden(batch, images))


def test_checkpointed_layers_learn_the_same():
    gradients = []
    for checkpointing in ("none", "layer"):
        config = tiny_config()
        config = dataclasses.replace(config, language=dataclasses.replace(config.language, checkpointing=checkpointing))
        model = adapted(config, busy=True).eval()
        batch = batch_of(ONE_BATCH)
        model(batch, features(batch.num_images)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)
        assert expected.abs().max() > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"targets": ()}, "expected some of q_proj"),
        ({"targets": ("q_proj", "q_proj")}, "each once"),
    ],
)
def test_options_without_sense_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        LoraOptions(**fields)


def test_a_state_that_was_adapted_otherwise_is_refused():
    state = adapted(tiny_config()).state_dict()
    with pytest.raises(ValueError, match="expected rank 8"):
        merge_lora(state, dataclasses.replace(OPTIONS, rank=8))
    with pytest.raises(ValueError, match="holds no adapters"):
        merge_lora(build(tiny_config()).state_dict(), OPTIONS)
    del state["language.layers.0.mlp.up_proj.lora_B.default.weight"]
    with pytest.raises(ValueError, match=r"layers.0.mlp.up_proj lacks"):
        merge_lora(state, OPTIONS)


def test_adapters_are_not_put_upon_adapters():
    with pytest.raises(ValueError, match="has adapters"):
        add_lora(adapted(tiny_config()), OPTIONS)


def test_without_peft_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install "tokenflow\[lora\]"'):
        add_lora(build(tiny_config()), OPTIONS)


@pytest.fixture(scope="module")
def one_process():
    torch.set_num_threads(1)
    distributed.initialize()


def tune(*, stage, construction="whole", precision="fp32", batches=BATCHES * 2):
    """Losses of a few steps, and the engine."""
    config = tiny_config()

    def factory():
        model = MultimodalModel(config)
        add_lora(model, OPTIONS)
        return model

    engine = train.Engine(
        factory,
        name="multimodal",
        train=train.TrainConfig(steps=10, global_batch_size=2, micro_batch_size=2, precision=precision),
        optimizer=train.OptimizerConfig(learning_rate=0.01),
        deepspeed={"zero_optimization": {"stage": stage}},
        weights=adapted_weights(build(config).state_dict(), config, OPTIONS),
        construction=construction,
    )
    losses = []
    for step, conversations in enumerate(batches):
        batch = batch_of(conversations)
        # Dropout draws the same at every stage.
        torch.manual_seed(step)
        engine.start_step()
        engine.start_micro_batch(last=True)
        output = engine(batch, features(batch.num_images))
        engine.backward(output.loss)
        engine.step(step)
        losses.append(output.loss.item())
    return losses, engine


@pytest.fixture(scope="module")
def expected(one_process):
    return tune(stage=0)[0]


@pytest.mark.parametrize("stage, construction", [(2, "whole"), (3, "whole"), (3, "sharded")])
def test_zero_takes_the_same_steps(stage, construction, expected):
    found, _ = tune(stage=stage, construction=construction)
    assert found == pytest.approx(expected, abs=5e-5)
    assert sum(found[-4:]) < sum(found[:4])


def test_bf16_under_zero_3_stays_close(expected):
    found, _ = tune(stage=3, construction="sharded", precision="bf16", batches=BATCHES)
    assert found == pytest.approx(expected[: len(BATCHES)], rel=0.05)


@pytest.mark.parametrize("stage", [2, 3])
def test_what_was_tuned_is_a_plain_model_after_merging(stage, one_process):
    _, engine = tune(stage=stage)
    config = tiny_config()
    plain, start = MultimodalModel(config), build(config)
    plain.load_state_dict(merge_lora(iterate_state(engine.module), OPTIONS))
    torch.testing.assert_close(hidden(plain), hidden(engine.module), rtol=1e-4, atol=1e-4)
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    linear = {name for name in changed if name.endswith("_proj.weight")}
    assert changed == linear | {name for name in plain.state_dict() if name.startswith("projector.")}
    assert len(linear) == 2 * 7

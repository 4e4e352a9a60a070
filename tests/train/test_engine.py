import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.train.tiny_run import WIDTH, Discriminator, Generator, Regression
from tokenflow import train
from tokenflow.train import distributed

ROOT = Path(__file__).resolve().parents[2]
STAGES = [0, 1, 2, 3]


@pytest.fixture(scope="module", autouse=True)
def one_process():
    torch.set_num_threads(1)
    distributed.initialize()


def make(stage, factory=Generator, *, precision="fp32", **options):
    config = train.TrainConfig(steps=10, global_batch_size=8, micro_batch_size=4, precision=precision)
    options = {"optimizer": train.OptimizerConfig(learning_rate=0.01, weight_decay=0.1), **options}
    return train.Engine(
        factory, name="tiny", train=config, deepspeed={"zero_optimization": {"stage": stage}}, **options
    )


def batches(*seeds):
    return [torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def accumulate(engine, *seeds, poison=None):
    engine.start_step()
    for index, batch in enumerate(batches(*seeds)):
        engine.start_micro_batch(last=index == len(seeds) - 1)
        loss = (engine(batch) - batch).square().mean()
        engine.backward(loss * float("nan") if index == poison else loss)


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_matches_plain_torch(stage):
    engine = make(stage)
    twin = Generator()
    twin.load_state_dict(engine.gathered_state_dict())
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(3):
        accumulate(engine, 2 * step, 2 * step + 1)
        engine.step(step)
        optimizer.zero_grad()
        for batch in batches(2 * step, 2 * step + 1):
            ((twin(batch) - batch).square().mean() / 2).backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        assert float(engine.gradient_norm) == pytest.approx(float(norm), rel=1e-5)
    for name, value in engine.gathered_state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("poison", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_discarded_step_leaves_no_trace(stage, poison):
    engine, twin = make(stage), make(stage)
    accumulate(engine, 0, 1)
    engine.step(0)
    accumulate(engine, 2, 3, poison=poison)
    assert engine.non_finite_gradient() == 1
    engine.discard_gradients()
    assert not engine.step(1)
    accumulate(engine, 4, 5)
    assert engine.non_finite_gradient() == 0
    engine.step(1)
    for step, seeds in enumerate([(0, 1), (4, 5)]):
        accumulate(twin, *seeds)
        twin.step(step)
    for name, value in engine.gathered_state_dict().items():
        assert torch.equal(value, twin.gathered_state_dict()[name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_discarded_step_restores_running_statistics(stage):
    engine = make(stage, Discriminator)
    before = {name: value for name, value in engine.gathered_state_dict().items() if "running" in name}
    engine.start_step()
    engine.start_micro_batch(last=True)
    real, fake = batches(0, 1)
    engine.backward(engine(real * float("inf"), fake)[0].mean())
    assert engine.non_finite_gradient() == 1
    engine.discard_gradients()
    after = engine.gathered_state_dict()
    assert before and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_follows_its_formula_and_swaps_in_and_out(stage):
    engine = make(stage, ema_decay=0.9)
    expected = engine.gathered_state_dict()
    for step in range(4):
        accumulate(engine, step, step + 10)
        engine.step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        own = engine.gathered_state_dict()
        expected = {name: decay * value + (1 - decay) * own[name] for name, value in expected.items()}
    averaged = engine.gathered_average()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value)
    (batch,) = batches(99)
    reference = Generator()
    reference.load_state_dict(averaged)
    with torch.no_grad():
        with engine.averaged_weights():
            torch.testing.assert_close(engine.module(batch), reference(batch))
        reference.load_state_dict(own)
        torch.testing.assert_close(engine.module(batch), reference(batch))
    accumulate(engine, 50, 51)
    engine.step(4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["built", "later"])
def test_weights_are_loaded_from_safetensors(tmp_path, stage, when):
    source = {name: torch.full_like(value, 0.25) for name, value in Generator().state_dict().items()}
    save_file(source, tmp_path / "weights.safetensors")
    engine = make(stage, weights=tmp_path if when == "built" else None, ema_decay=0.9)
    if when == "later":
        engine.load_weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(value, source[name]) for name, value in engine.gathered_state_dict().items())
    assert all(torch.equal(value, source[name]) for name, value in engine.gathered_average().items())
    # The optimiser's own copy must know them too: a step starts from them.
    accumulate(engine, 0, 1)
    engine.step(0)
    for name, value in engine.gathered_state_dict().items():
        assert (value - source[name]).abs().max() < 0.02, name


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks 3 weights of the model"):
        make(0, weights={"layers.0.weight": torch.zeros(12, WIDTH)})
    with pytest.raises(ValueError, match="has shape"):
        make(3, weights={**Generator().state_dict(), "layers.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not have"):
        make(1, weights={**Generator().state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        make(1, weights=tmp_path)


def test_initial_weights_depend_on_seed_and_name_alone():
    torch.manual_seed(1)
    first = make(0).gathered_state_dict()
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    second = make(2).gathered_state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("stage", STAGES)
def test_autocast_keeps_parameters_in_fp32_and_bf16_does_not(stage):
    for precision, dtype in (("bf16_autocast", torch.float32), ("bf16", torch.bfloat16)):
        engine = make(stage, precision=precision)
        assert {parameter.dtype for parameter in engine.module.parameters()} == {dtype}
        engine.start_step()
        engine.start_micro_batch(last=True)
        (batch,) = batches(0)
        output = engine(batch.to(dtype))
        assert output.dtype == torch.bfloat16
        engine.backward(output.float().square().mean())
        assert engine.step(0)


@pytest.mark.parametrize("stage", STAGES)
def test_a_frozen_module_passes_gradients_and_keeps_none(stage):
    engine = make(stage, Discriminator)
    image = batches(0)[0].requires_grad_()
    with train.frozen(engine) as network:
        (gradient,) = torch.autograd.grad(network.network(image).sum(), image)
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in engine.module.parameters())
    assert engine.non_finite_gradient() == 0


def test_sharded_construction_takes_its_weights_from_a_file():
    source = Generator().state_dict()
    engine = make(3, construction="sharded", weights=source)
    assert all(torch.equal(value, source[name]) for name, value in engine.gathered_state_dict().items())
    accumulate(engine, 0, 1)
    assert engine.step(0)


def test_parameter_groups_have_their_own_decay_and_scale():
    def groups(module):
        first, second = train.decay_matrices_only(module, weight_decay=0.5)
        return [{**first, "learning_rate_scale": 0.0}, second]

    for stage in STAGES:
        engine = make(stage, parameter_groups=groups)
        before = engine.gathered_state_dict()
        accumulate(engine, 0, 1)
        engine.step(0)
        after = engine.gathered_state_dict()
        for name, value in before.items():
            assert torch.equal(after[name], value) == (value.ndim == 2), name


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_every_shipped_configuration_trains(name):
    json_ = json.loads((ROOT / "deepspeed_configs" / f"{name}.json").read_text())
    config = train.TrainConfig(steps=2, global_batch_size=4, micro_batch_size=4)
    engine = train.Engine(
        lambda: Regression(dropout=0.0), name="tiny", train=config, optimizer=train.OptimizerConfig(), deepspeed=json_
    )
    engine.start_step()
    engine.start_micro_batch(last=True)
    engine.backward(engine({"x": batches(0)[0]})["loss"])
    assert engine.step(0)
    assert engine.stage == int(name[-1])

"""Optimiser states off the device: the steps are those of plain training, on the processor and on NVMe."""

import json
import os

import pytest
import torch
from torch import nn

from tests.train.launching import ROOT
from tokenflow import train
from tokenflow.train import distributed
from tokenflow.train.offload import in_swappable_order, with_own_swap_folder

CONFIG = train.TrainConfig(steps=4, global_batch_size=4, micro_batch_size=4)


class Wide(nn.Module):
    """Large matrices (2 MB, enough to be swapped) with small biases between them, as in a transformer."""

    def __init__(self, odd: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 1024), nn.Tanh(), nn.Linear(1024, 512), nn.Tanh()),
            *(nn.Linear(512, 1025), nn.Tanh(), nn.Linear(1025, odd)),
        )

    def forward(self, x):
        return self.layers(x).square().mean()


def configuration(name):
    return json.loads((ROOT / "deepspeed_configs" / f"{name}.json").read_text())


def make(deepspeed, factory=Wide):
    distributed.initialize()
    optimizer = train.OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    return train.Engine(factory, name="wide", train=CONFIG, optimizer=optimizer, deepspeed=deepspeed)


def losses(engine):
    taken = []
    for step in range(CONFIG.steps):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        engine.start_step()
        engine.start_micro_batch(last=True)
        loss = engine(x)
        engine.backward(loss)
        assert engine.step(step)
        taken.append(loss.item())
    return taken


def need_processor_adam():
    from deepspeed.ops.op_builder import CPUAdamBuilder

    if not CPUAdamBuilder().is_compatible():
        pytest.skip("DeepSpeed's Adam for the processor cannot be built here (a C++ compiler and ninja build it)")


def need_direct_io(folder):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        pytest.skip("DeepSpeed's asynchronous I/O cannot be built here (apt-get install libaio-dev)")
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"{folder} does not take direct input and output ({error})")


@pytest.mark.slow
def test_states_in_the_processors_memory_train_as_without_and_come_back(tmp_path):
    need_processor_adam()
    engine = make(configuration("zero3_offload"))
    assert losses(engine) == pytest.approx(losses(make({})), rel=1e-4)
    again = make(configuration("zero3_offload"))
    again.load(tmp_path, engine.save(tmp_path), world_size=1)
    assert losses(again) == losses(engine)


@pytest.mark.slow
def test_states_on_nvme_train_as_without(tmp_path):
    need_processor_adam()
    need_direct_io(tmp_path)
    deepspeed = configuration("zero3_offload_nvme")
    deepspeed["zero_optimization"]["offload_optimizer"]["nvme_path"] = str(tmp_path)
    engine = make(deepspeed)
    assert losses(engine) == pytest.approx(losses(make({})), rel=1e-4)
    swapped = {path.name.split("-")[0] for path in tmp_path.rglob("*.swp")}
    assert {"exp_avg", "exp_avg_sq"} <= swapped, "nothing was swapped: the test tests nothing"
    with pytest.raises(ValueError, match="cannot be resumed"):
        engine.load(tmp_path, {"stage": 3}, world_size=1)


def test_two_runs_never_swap_into_the_same_folder(tmp_path):
    given = configuration("zero3_offload_nvme")
    with pytest.raises(ValueError, match=r"/local_nvme.*expected a folder"):
        with_own_swap_folder(given)
    given["zero_optimization"]["offload_optimizer"]["nvme_path"] = str(tmp_path)
    one, two = (with_own_swap_folder(given)["zero_optimization"]["offload_optimizer"]["nvme_path"] for _ in range(2))
    assert one != two and given["zero_optimization"]["offload_optimizer"]["nvme_path"] == str(tmp_path)


def test_what_is_swapped_begins_aligned_or_is_refused():
    module = nn.Sequential(nn.Linear(700, 3), nn.Linear(256, 4096), nn.Linear(700, 1500))
    groups = [{"params": list(module.parameters()), "weight_decay": 0.1}]
    (ordered,) = in_swappable_order(groups, module=module, deepspeed={}, world_size=1)
    sizes = [parameter.numel() for parameter in ordered["params"]]
    assert sizes == [256 * 4096, 4096, 700 * 1500, 2100, 1500, 3] and ordered["weight_decay"] == 0.1
    two = nn.Sequential(nn.Linear(700, 1500), nn.Linear(1500, 700))
    with pytest.raises(ValueError, match=r"0\.weight \(1,050,000\) last but not also 1\.weight"):
        in_swappable_order([{"params": list(two.parameters())}], module=two, deepspeed={}, world_size=1)
    (halves,) = in_swappable_order([{"params": list(two.parameters())}], module=two, deepspeed={}, world_size=8)
    assert len(halves["params"]) == 4

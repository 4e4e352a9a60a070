"""The estimate against the tensors that an engine really keeps."""

import gc
import shutil

import pytest
import torch
from torch import nn

from tokenflow import train
from tokenflow.train import distributed

WIDTH = 256


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(20)])

    def forward(self, x):
        return self.layers(x.to(self.layers[0].weight.dtype))


def tensor_bytes():
    """Bytes of every tensor alive, a shared storage counted once."""
    gc.collect()
    storages = {}
    # Not their subclasses: what torch.compile traced with in another test has no memory.
    for found in [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]:
        for tensor in (found, found.grad if found.is_leaf else None, getattr(found, "ds_tensor", None)):
            if tensor is not None:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def train_once(zero, precision, *, averaged):
    config = train.TrainConfig(steps=9, global_batch_size=2, micro_batch_size=2, precision=precision)
    engine = train.Engine(
        Wide,
        name="wide",
        train=config,
        optimizer=train.OptimizerConfig(),
        deepspeed={"zero_optimization": zero},
        ema_decay=0.9 if averaged else None,
    )
    for step in range(2):
        engine.start_step()
        engine.start_micro_batch(last=True)
        engine.backward(engine(torch.ones(2, WIDTH)).float().square().mean())
        if step == 0:
            engine.step(step)
    return engine


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_estimate_is_what_the_tensors_take(stage, precision, averaged):
    torch.set_num_threads(1)
    distributed.initialize()
    zero = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": 10_000,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 10_000,
    }
    before = tensor_bytes()
    engine = train_once(zero, precision, averaged=averaged)
    measured = tensor_bytes() - before
    trained = 20 * WIDTH * (WIDTH + 1)
    estimate = train.estimate_memory(
        trained=trained, deepspeed={"zero_optimization": zero}, precision=precision, averaged=averaged
    )
    assert engine.stage == stage
    # Between passes nothing is gathered; benchmarks.zero_memory looks at the peak.
    assert measured == pytest.approx(estimate.total - estimate.gathered, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ninja") is None or shutil.which("g++") is None, reason="CPU Adam needs a compiler")
@pytest.mark.parametrize("stage", [2, 3])
def test_the_optimiser_can_live_in_the_processors_memory(stage):
    distributed.initialize()
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    engine = train_once(zero, "fp32", averaged=False)
    plain = train_once({"stage": stage}, "fp32", averaged=False)
    for name, value in engine.gathered_state_dict().items():
        torch.testing.assert_close(value, plain.gathered_state_dict()[name], atol=1e-5, rtol=1e-5)

import math

import pytest
import torch
from torch import nn

from tokenflow.train import OptimizerConfig, ScheduleConfig, decay_matrices_only, learning_rate_at


def rates(steps, **schedule):
    config = ScheduleConfig(**schedule)
    optimizer = OptimizerConfig(learning_rate=2.0)
    return [learning_rate_at(step, steps=steps, optimizer=optimizer, schedule=config) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    assert rates(6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_warm_up_can_be_a_share_of_the_run():
    assert rates(100, warmup_ratio=0.03) == rates(100, warmup_steps=3)


def test_cosine_falls_from_peak_to_its_share_at_the_last_step():
    values = rates(11, kind="cosine", min_ratio=0.1)
    expected = [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 10))) for step in range(11)]
    assert values == pytest.approx(expected)
    assert values[0] == 2.0 and values[-1] == pytest.approx(0.2)


def test_linear_falls_in_equal_steps_to_zero():
    assert rates(5, kind="linear") == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "values",
    [{"warmup_steps": -1}, {"warmup_ratio": 1.0}, {"min_ratio": 2.0}, {"warmup_steps": 3, "warmup_ratio": 0.1}],
)
def test_schedules_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=r"expected|set only one"):
        ScheduleConfig(**values)


@pytest.mark.parametrize("values", [{"learning_rate": 0.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -1.0}])
def test_optimisers_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        OptimizerConfig(**values)


def test_only_matrices_and_kernels_decay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 4))
    module[2].weight.requires_grad_(False)
    decayed, plain = decay_matrices_only(module, weight_decay=0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert len(plain["params"]) == 4 and plain["weight_decay"] == 0.0
    assert all(p.ndim == 1 for p in plain["params"])
    assert torch.is_tensor(plain["params"][0])

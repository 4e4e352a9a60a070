import json
from pathlib import Path

import pytest

from tokenflow.train import (
    OptimizerConfig,
    TrainConfig,
    estimate_memory,
    merge_deepspeed_config,
    offload_device,
    zero_stage,
)

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "deepspeed_configs").glob("*.json"))
TRAIN = TrainConfig(steps=10, global_batch_size=16, micro_batch_size=4, gradient_clipping=0.5)


def merge(json_, train=TRAIN, world_size=2):
    return merge_deepspeed_config(
        json_, train, OptimizerConfig(learning_rate=0.1), world_size=world_size, source="zero2.json"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_hold_zero_and_nothing_else(path):
    json_ = json.loads(path.read_text())
    assert set(json_) - {"aio"} == {"zero_optimization"}
    assert ("aio" in json_) == (offload_device(json_) == "nvme")
    assert zero_stage(json_) == int(path.stem[4])
    assert merge(json_)["zero_optimization"] == json_["zero_optimization"]
    assert path.name in (path.parent / "README.md").read_text()


def test_the_recipe_gives_batch_sizes_clipping_and_precision():
    merged = merge({"zero_optimization": {"stage": 2}})
    assert merged["train_batch_size"] == 16
    assert merged["train_micro_batch_size_per_gpu"] == 4
    assert merged["gradient_accumulation_steps"] == 2
    assert merged["gradient_clipping"] == 0.5
    assert "bf16" not in merged and "torch_autocast" not in merged
    bf16 = TrainConfig(steps=1, global_batch_size=8, micro_batch_size=4, precision="bf16")
    assert merge({}, bf16)["bf16"] == {"enabled": True}
    autocast = TrainConfig(steps=1, global_batch_size=8, micro_batch_size=4, precision="bf16_autocast")
    assert merge({}, autocast)["torch_autocast"]["enabled"] is True


def test_clipping_that_is_off_is_written_too():
    train = TrainConfig(steps=1, global_batch_size=4, micro_batch_size=4, gradient_clipping=0.0)
    assert merge({}, train, 1)["gradient_clipping"] == 0.0


def test_auto_and_equal_values_are_no_contradiction():
    merged = merge(
        {
            "train_batch_size": "auto",
            "gradient_clipping": 0.5,
            "bf16": {"enabled": False},
            "fp16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-8}},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
        }
    )
    assert merged["zero_optimization"] == {"stage": 2}
    assert "optimizer" not in merged and "fp16" not in merged


@pytest.mark.parametrize(
    ("json_", "named"),
    [
        ({"train_batch_size": 32}, ["train_batch_size", "32", "train.global_batch_size", "16"]),
        ({"gradient_accumulation_steps": 4}, ["gradient_accumulation_steps", "4", "2"]),
        ({"gradient_clipping": 1.0}, ["gradient_clipping", "1.0", "train.gradient_clipping", "0.5"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled", "True", "train.precision", "False"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled", "True", "train.precision"]),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.2}}}, ["optimizer.params.lr", "0.2", "0.1"]),
        ({"optimizer": {"type": "Lion"}}, ["optimizer.type", "Lion"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler.type", "WarmupLR"]),
        ({"zero_optimisation": {}}, ["zero_optimisation", "zero_optimization"]),
    ],
)
def test_a_contradiction_names_both_places(json_, named):
    with pytest.raises(ValueError, match=r"zero2\.json") as error:
        merge(json_)
    for part in named:
        assert part in str(error.value)


def test_a_global_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not divide into 3 ranks"):
        merge({}, world_size=3)
    with pytest.raises(ValueError, match="Use a number of ranks that divides 16"):
        merge({}, world_size=3)
    with pytest.raises(ValueError, match="Use micro_batch_size 2;"):
        merge({}, world_size=8)
    with pytest.raises(ValueError, match="not a multiple of micro_batch_size"):
        TrainConfig(steps=1, global_batch_size=10, micro_batch_size=4)


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"gradient_clipping": -1.0}, {"ema_decay": 1.0}, {"keep_last": 0}, {"save_every": -1}],
)
def test_training_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        TrainConfig(**{"steps": 1, "global_batch_size": 4, "micro_batch_size": 4, **values})


def test_memory_falls_with_the_stage_and_the_ranks():
    def total(stage, ranks, live=1000, **options):
        zero = {"stage": stage, "reduce_bucket_size": 1000, "overlap_comm": False, "stage3_max_live_parameters": live}
        json_ = {"zero_optimization": zero}
        return estimate_memory(trained=1_000_000, deepspeed=json_, world_size=ranks, **options).total

    assert total(0, 1) == 16_000_000
    assert total(0, 8) == 16_000_000
    assert total(1, 8) > total(2, 8) > total(3, 8)
    # a bucket and its copy while it is reduced; the weights that are whole at a time, all of them where that is allowed
    assert total(3, 8) == 20_000_000 // 8 + 2 * 4000 + 4000
    assert total(3, 8, live=1_000_000_000) == 20_000_000 // 8 + 2 * 4000 + 4_000_000
    assert total(3, 8, averaged=True) - total(3, 8) == 4_000_000 // 8
    assert total(2, 8, precision="bf16") < total(2, 8)


def test_offload_moves_the_optimiser_to_the_processor():
    json_ = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    estimate = estimate_memory(trained=1_000_000, deepspeed=json_, world_size=2, precision="bf16")
    assert estimate.optimizer == 0 and estimate.offloaded == 8_000_000
    assert any("processor's memory" in line for line in estimate.lines())

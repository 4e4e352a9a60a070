"""The operations that a plan counts are those that the models really do."""

import pytest
import torch
from torch import nn

from tokenflow.config import RECIPES, Launch, load_recipe, read_json
from tokenflow.language.config import LanguageConfig
from tokenflow.language.transformer import CausalTransformer
from tokenflow.nn.vision_transformer import VisionTransformer, VisionTransformerConfig
from tokenflow.ops.attention_layout import AttentionLayout, Sample
from tokenflow.tasks import language_plan, teacher_plan
from tokenflow.tasks.cost import (
    FROZEN,
    SHIPPED,
    THROUGH,
    TRAINED,
    causal_pairs,
    cost_of,
    counting,
    figure,
    forward_flops,
    layer_flops,
    picture,
    trained_layers,
    with_stage,
)
from tokenflow.tasks.language import LanguageRecipe
from tokenflow.tasks.teacher import TeacherRecipe
from tokenflow.train import TrainConfig, estimate_memory

LANGUAGE = LanguageConfig(
    vocabulary_size=8, width=32, depth=3, heads=4, kv_heads=2, head_width=8, mlp_width=80, attention="dense"
)
LAUNCH = Launch(output="run", ds_config=None, resume="auto", init_from=None, dry_run=True)


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))


def counted(work):
    with counting() as counter:
        work()
    return counter.get_total_flops()


def test_a_forward_pass_costs_two_operations_a_weight_and_place():
    assert forward_flops(convolutions, picture(16)) == 2 * 16 * 16 * 9 * (3 * 8 + 8 * 4)


def test_a_backward_pass_costs_two_forwards_and_one_through_frozen_weights():
    forward = forward_flops(convolutions, picture(16))
    network, pixels = convolutions(), torch.zeros(1, 3, 16, 16, requires_grad=True)
    assert counted(lambda: network(pixels).sum().backward()) == TRAINED * forward
    network.requires_grad_(False)
    assert counted(lambda: network(pixels).sum().backward()) == THROUGH * forward
    assert counted(lambda: network(pixels.detach())) == FROZEN * forward


def test_the_layers_of_a_transformer_cost_what_the_formula_says():
    positions = 24
    model = CausalTransformer(LANGUAGE)
    layout = AttentionLayout(rows=((Sample(start=0, text=positions),),), length=positions)

    def work():
        model(torch.zeros(1, positions, LANGUAGE.width), layout=layout, positions=torch.arange(positions)[None])

    # The reference multiplies all pairs and then masks.
    assert counted(work) == layer_flops(LANGUAGE, positions=positions, pairs=positions**2)
    assert causal_pairs(3) == 1 + 2 + 3


def test_attention_in_a_vision_tower_is_counted():
    config = VisionTransformerConfig(width=16, depth=2, heads=2, mlp_width=32, patch_size=4, position_grid=4)
    tokens = (16 // 4) ** 2
    weights = 4 * 16 * 16 + 2 * 16 * 32
    expected = 2 * tokens * 3 * 4 * 4 * 16 + 2 * 2 * (tokens * weights + 2 * tokens * tokens * 16)
    assert forward_flops(lambda: VisionTransformer(config), picture(16)) == expected


def test_checkpointing_computes_the_layers_once_more():
    again = LanguageConfig(**{**LANGUAGE.__dict__, "checkpointing": "layer"})
    assert (trained_layers(LANGUAGE, 10.0), trained_layers(again, 10.0)) == (30.0, 40.0)


def test_states_are_those_of_the_estimate_with_what_lies_outside_whole():
    train = TrainConfig(steps=10, global_batch_size=8, micro_batch_size=1, precision="bf16", ema_decay=0.9)
    cost = cost_of(train, unit="pictures", flops=2e12, kind="transformer", trained=1000, inside=500, outside=70)
    deepspeed = read_json(SHIPPED / "zero3.json")
    inside = estimate_memory(
        trained=1000, frozen=500, deepspeed=deepspeed, world_size=4, precision="bf16", averaged=True
    )
    assert cost.memory(deepspeed, world_size=4) == inside.total + 4 * 70
    assert cost.samples == 80 and cost.exaflops == pytest.approx(160e-6)
    assert cost.days(8) == pytest.approx(cost.days(1) / 8)
    assert cost.rate(days=2) * 2 * 86_400 == pytest.approx(80)


def test_another_stage_keeps_the_buckets_and_leaves_offload_behind():
    given = read_json(SHIPPED / "zero3_offload.json")
    changed = with_stage(given, 1)["zero_optimization"]
    assert changed["stage"] == 1 and "offload_optimizer" not in changed
    assert changed["reduce_bucket_size"] == given["zero_optimization"]["reduce_bucket_size"]
    assert "offload_optimizer" in given["zero_optimization"]
    assert with_stage({}, 2) == read_json(SHIPPED / "zero2.json")


@pytest.mark.parametrize(
    ("stage", "recipe_class", "plan"),
    [("teacher_pretrain", TeacherRecipe, teacher_plan), ("lm_pretrain", LanguageRecipe, language_plan)],
)
def test_the_small_stages_have_a_plan_too(stage, recipe_class, plan):
    lines = list(plan.plan(load_recipe(recipe_class, RECIPES / stage / "nano.yaml"), LAUNCH))
    assert any("8 GPUs" in line for line in lines)
    assert any("an assumption" in line for line in lines)


def test_figures_have_three_digits():
    assert [figure(value) for value in (1e-6, 0.0123456, 4.5678, 123456.0)] == ["<0.001", "0.0123", "4.57", "123,456"]

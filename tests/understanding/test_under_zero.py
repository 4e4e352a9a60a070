"""The model under DeepSpeed: the same steps at every ZeRO stage, whatever a batch holds."""

import pytest
import torch

from tests.understanding.tiny import IMAGE_TOKENS, build, conversation, features, tiny_config
from tokenflow import train
from tokenflow.train import distributed
from tokenflow.understanding.batching import collate
from tokenflow.understanding.model import MultimodalModel

BATCHES = [
    ([(9, 1), (14, 2)], "none"),
    ([(6, 0), (8, 0)], "none"),
    ([(9, 1), (6, 0), (7, 1)], "rows"),
    ([(12, 1), (5, 0)], "none"),
]
"""Tokens and images of each step's conversations, and how they are laid out."""


@pytest.fixture(scope="module", autouse=True)
def one_process():
    torch.set_num_threads(1)
    distributed.initialize()


def losses(*, stage, construction="whole", precision="fp32", frozen=False):
    config = tiny_config()

    def factory():
        model = MultimodalModel(config)
        if frozen:
            model.language.requires_grad_(False)
            model.head.requires_grad_(False)
        return model

    engine = train.Engine(
        factory,
        name="multimodal",
        train=train.TrainConfig(steps=10, global_batch_size=2, micro_batch_size=2, precision=precision),
        optimizer=train.OptimizerConfig(learning_rate=0.01),
        deepspeed={"zero_optimization": {"stage": stage}},
        weights=build(config).state_dict(),
        construction=construction,
    )
    found = []
    for step, (conversations, packing) in enumerate(BATCHES * 2):
        rows = [conversation(length, images=images, seed=n) for n, (length, images) in enumerate(conversations)]
        batch = collate(rows, image_tokens=IMAGE_TOKENS, max_length=64, packing=packing)
        engine.start_step()
        engine.start_micro_batch(last=True)
        output = engine(batch, features(batch.num_images))
        engine.backward(output.loss)
        engine.step(step)
        found.append(output.loss.item())
    return found


@pytest.mark.parametrize("stage, construction", [(2, "whole"), (3, "whole"), (3, "sharded")])
def test_zero_takes_the_same_steps(stage, construction):
    assert losses(stage=stage, construction=construction) == pytest.approx(losses(stage=0), abs=5e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_projector_alone_learns_the_same(stage):
    expected = losses(stage=0, frozen=True)
    assert losses(stage=stage, frozen=True) == pytest.approx(expected, abs=5e-5)
    assert expected != losses(stage=0)


def test_bf16_under_zero_3_stays_close():
    # Each batch once: at the second visit the losses have fallen tenfold, and roundings weigh more.
    expected = losses(stage=0)[: len(BATCHES)]
    found = losses(stage=3, construction="sharded", precision="bf16")[: len(BATCHES)]
    assert found == pytest.approx(expected, rel=0.05)

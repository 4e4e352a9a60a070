import dataclasses

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tokenflow import train
from tokenflow.language.config import LanguageConfig
from tokenflow.language.hf import load_hf_language
from tokenflow.language.transformer import CausalTransformer, Projection
from tokenflow.ops.attention_layout import AttentionLayout, Sample
from tokenflow.train import distributed

LENGTHS = (6, 3)
LAYOUT = AttentionLayout(tuple((Sample(6 - n, n, (1, 2)),) for n in LENGTHS), 11)


class Predictor(nn.Module):
    """Next-token loss with a head of its own."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.language = CausalTransformer(config)
        self.head = Projection(config.width, config.vocabulary_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.language(self.language.embed_tokens(ids), layout=LAYOUT)[LAYOUT.is_token(ids.device)]
        return nn.functional.cross_entropy(self.head(hidden).float(), ids[LAYOUT.is_token(ids.device)])


@pytest.fixture(scope="module", autouse=True)
def one_process():
    torch.set_num_threads(1)
    distributed.initialize()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(folder)
    return folder


def losses(folder, *, stage, construction="whole", precision="fp32", **changes):
    config, weights, head = load_hf_language(folder)
    config = dataclasses.replace(config, **changes)
    named = weights.renamed(lambda name: f"language.{name}").joined(head.renamed(lambda name: "head.weight"))
    if config.qk_norm:
        ones = {
            f"language.layers.{i}.self_attn.{kind}_norm.weight": torch.ones(config.head_width)
            for i in range(config.depth)
            for kind in ("query", "key")
        }
        named = named.joined(ones)
    engine = train.Engine(
        lambda: Predictor(config),
        name="language",
        train=train.TrainConfig(steps=10, global_batch_size=2, micro_batch_size=2, precision=precision),
        optimizer=train.OptimizerConfig(learning_rate=0.01),
        deepspeed={"zero_optimization": {"stage": stage}},
        weights=named,
        construction=construction,
    )
    found = []
    for step in range(4):
        ids = torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(step))
        engine.start_step()
        engine.start_micro_batch(last=True)
        loss = engine(ids)
        engine.backward(loss)
        engine.step(step)
        found.append(loss.item())
    return found


@pytest.mark.parametrize("checkpointing", ["none", "layer"])
@pytest.mark.parametrize("construction", ["whole", "sharded"])
def test_zero_3_takes_the_same_steps_from_streamed_weights(folder, construction, checkpointing):
    options = {"qk_norm": True, "norm_order": "post"}
    expected = losses(folder, stage=0, **options)
    found = losses(folder, stage=3, construction=construction, checkpointing=checkpointing, **options)
    assert found == pytest.approx(expected, abs=2e-5)
    assert len(set(found)) == 4


@pytest.mark.parametrize("precision", ["bf16", "bf16_autocast"])
def test_bf16_under_zero_3_stays_close(folder, precision):
    expected = losses(folder, stage=0)
    found = losses(folder, stage=3, construction="sharded", precision=precision, checkpointing="layer")
    assert found == pytest.approx(expected, rel=0.02)

import copy

import pytest
import torch
from torch import nn

from tokenflow.train import Engine, OptimizerConfig, TrainConfig, distributed
from tokenflow.train.config import merge_deepspeed_config
from tokenflow.train.muon import MuonWithAdamW, orthogonalised, split_matrices


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.inner = nn.Linear(8, 16)
        self.outer = nn.Linear(16, 3, bias=False)

    def forward(self, ids):
        return self.outer(torch.tanh(self.inner(self.embedding(ids)))).square().mean()


def net():
    torch.manual_seed(0)
    return Net()


def optimizer(model, **changes):
    constants = {"learning_rate": 0.01, "matrix_learning_rate": 0.04, "momentum": 0.9, "betas": (0.9, 0.95)}
    constants |= {"eps": 1e-8, "weight_decay": 0.1, "newton_schulz_steps": 5}
    return MuonWithAdamW(*split_matrices(model, [{"params": list(model.parameters())}]), **{**constants, **changes})


def train(model, steps, optimizers):
    for _ in range(steps):
        model(torch.arange(5)).backward()
        for one in optimizers:
            one.step()
            one.zero_grad()
    return model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def muon_by_definition(parameters, momenta, *, rate, momentum, decay, steps=5, a=3.4445, b=-4.775, c=2.0315):
    """A step of Jordan et al., one matrix after another, in float64."""
    for parameter, kept in zip(parameters, momenta, strict=True):
        gradient = parameter.grad.double()
        kept.copy_(momentum * kept + (1 - momentum) * gradient)
        x = momentum * kept + (1 - momentum) * gradient
        tall = x.shape[0] > x.shape[1]
        x = (x.T if tall else x) / x.norm()
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        wide = max(1, parameter.shape[0] / parameter.shape[1]) ** 0.5
        parameter.data = ((1 - rate * decay) * parameter.data - rate * wide * (x.T if tall else x)).float()


def test_a_step_is_muons_on_linear_weights_and_adamws_on_everything_else():
    ours, theirs = net(), net()
    matrices = [theirs.inner.weight, theirs.outer.weight]
    momenta = [torch.zeros_like(matrix, dtype=torch.float64) for matrix in matrices]
    adamw = torch.optim.AdamW(
        [theirs.embedding.weight, theirs.inner.bias], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1
    )
    train(ours, 4, [optimizer(ours)])
    for _ in range(4):
        theirs(torch.arange(5)).backward()
        muon_by_definition(matrices, momenta, rate=0.04, momentum=0.9, decay=0.1)
        adamw.step()
        theirs.zero_grad()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], atol=1e-5, rtol=1e-4)
    assert not same(ours, net())


def test_a_step_is_torchs_within_the_bf16_that_it_computes_in():
    ours, theirs = net(), net()
    before = [ours.inner.weight.detach().clone(), ours.outer.weight.detach().clone()]
    for model in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        for weight in (model.inner.weight, model.outer.weight):
            weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer(ours).step()
    torch.optim.Muon([theirs.inner.weight, theirs.outer.weight], lr=0.04, momentum=0.9, weight_decay=0.1).step()
    for start, a, b in zip(before, (ours.inner, ours.outer), (theirs.inner, theirs.outer), strict=True):
        step, reference = a.weight - start, b.weight - start
        assert (step - reference).norm() < 0.03 * reference.norm()


def test_a_saved_state_continues_exactly():
    unbroken = train(net(), 0, [])
    one = optimizer(unbroken)
    train(unbroken, 3, [one])
    model, state = copy.deepcopy(unbroken), copy.deepcopy(one.state_dict())
    again = optimizer(model)
    again.load_state_dict(state)
    train(unbroken, 3, [one])
    train(model, 3, [again])
    assert same(unbroken, model)


def test_the_schedule_moves_both_rates():
    config = OptimizerConfig(name="muon", learning_rate=0.01, matrix_learning_rate=0.04)
    plan = TrainConfig(steps=4, global_batch_size=1, micro_batch_size=1)
    distributed.initialize()
    engine = Engine(net, name="net", train=plan, optimizer=config)
    engine.start_step()
    engine.start_micro_batch(last=True)
    engine.backward(engine(torch.arange(5)))
    assert engine.step(0)
    assert sorted(group["lr"] for group in engine._engine.optimizer.param_groups) == pytest.approx([0.01, 0.04])


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (3, "fp32"), (0, "bf16")])
def test_pieces_of_matrices_are_refused(stage, precision):
    plan = TrainConfig(steps=1, global_batch_size=1, micro_batch_size=1, precision=precision)
    with pytest.raises(ValueError, match=r"muon needs whole fp32 matrices.*adamw"):
        merge_deepspeed_config(
            {"zero_optimization": {"stage": stage}}, plan, OptimizerConfig(name="muon"), world_size=1
        )


def test_a_module_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="0 groups of linear layers' weights"):
        split_matrices(nn.Embedding(3, 4), [{"params": [nn.Parameter(torch.zeros(3, 4))]}])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_matrices_together_are_orthogonalised_as_each_alone(count):
    matrices = torch.randn(count, 6, 9, generator=torch.Generator().manual_seed(0))
    options = {
        "steps": 12,
        "coefficients": (1.5, -0.5, 0.0),
    }  # the cubic iteration, which converges to singular values 1
    found = orthogonalised(matrices, **options)
    assert found.shape == matrices.shape
    for one, together in zip(matrices, found, strict=True):
        left, _, right = torch.linalg.svd(one, full_matrices=False)
        torch.testing.assert_close(together, left @ right, atol=1e-2, rtol=0)

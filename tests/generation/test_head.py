"""The head's loss and its gradients are those of one big cross-entropy, at a fraction of the memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tokenflow.generation.head import Head
from tokenflow.ops import cross_entropy


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def make(loss_over="vocabulary", *, rows=50, first=18, codes=32) -> Head:
    head = Head(rows=rows, width=8, first_code=first, codebook_size=codes, loss_over=loss_over)
    torch.nn.init.normal_(head.weight)
    return head


def reference(head: Head, hidden, targets):
    logits = F.linear(hidden, head.weight)
    if head.loss_over == "codes":
        logits, targets = logits[:, head.first_code :], targets - head.first_code
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(1) == targets


@pytest.mark.parametrize("loss_over", ["vocabulary", "codes"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_losses_and_gradients_equal_one_cross_entropy(monkeypatch, loss_over, chunk):
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", chunk * 50)
    head = make(loss_over)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    targets = torch.randint(18, 50, (3, 7))
    weights = torch.randn(21)
    ours = head(hidden, targets)
    gradients = torch.autograd.grad((ours.losses * weights).sum(), (hidden, head.weight))
    losses, correct = reference(head, hidden.flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad((losses * weights).sum(), (hidden, head.weight))
    torch.testing.assert_close(ours.losses, losses)
    assert torch.equal(ours.correct, correct)
    for ours_grad, expected_grad in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours_grad, expected_grad, atol=1e-5, rtol=1e-5)


def test_logits_are_those_of_the_codes_alone():
    head = make()
    hidden = torch.randn(2, 3, 8)
    torch.testing.assert_close(head(hidden), F.linear(hidden, head.weight)[..., 18:])


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 64 * 3000)
    head = make(rows=3000, first=0, codes=3000)
    peaks = []
    for tokens in (256, 2048):
        hidden = torch.randn(tokens, 8, requires_grad=True)
        with LargestTensor() as largest:
            head(hidden, torch.randint(3000, (tokens,))).losses.mean().backward()
        peaks.append(largest.elements)
    assert peaks[0] == peaks[1] == 64 * 3000


@pytest.mark.parametrize("precision", ["parameters", "autocast"])
def test_bf16_has_fp32_losses_near_the_exact_ones(precision):
    head = make()
    hidden, targets = torch.randn(40, 8), torch.randint(18, 50, (40,))
    expected, _ = reference(head, hidden, targets)
    hidden.requires_grad_()
    if precision == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = head(hidden, targets).losses
    else:
        losses = head.bfloat16()(hidden.bfloat16(), targets).losses
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert hidden.grad.isfinite().all() and head.weight.grad.dtype == head.weight.dtype
    torch.testing.assert_close(losses, expected, atol=0.1, rtol=0.05)

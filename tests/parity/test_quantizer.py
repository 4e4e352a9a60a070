"""The quantiser computes what the authors' VectorQuantizer and its residual loop compute."""

import pytest
import torch

from tests.parity.fixtures import goldens, weight
from tokenflow.tokenizer.quantizer import DROPPED, MultiScaleQuantizer, QuantizerConfig, SharedIndexQuantizer

AUTHORS_KEYS = ("embedding_vqkd.weight", "embedding_vqgan.weight")


def authors_quantizer(offset: int, *, scales: tuple[int, ...], entropy_weight: float = 0.0) -> MultiScaleQuantizer:
    config = QuantizerConfig(codebook_size=512, scales=scales, commitment_weight=0.25, entropy_weight=entropy_weight)
    quantizer = MultiScaleQuantizer(config)
    with torch.no_grad():
        for key, codebook in zip(AUTHORS_KEYS, quantizer.quantizer.codebooks, strict=True):
            codebook.copy_(weight(key, tuple(codebook.shape), offset=offset))
    return quantizer


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


@pytest.mark.parametrize("golden", goldens("vq_train"))
def test_shared_index_quantizer(golden):
    quantizer: SharedIndexQuantizer = authors_quantizer(golden.offset, scales=(6,), entropy_weight=0.1).quantizer
    features = golden.array("z").requires_grad_()
    output = quantizer(features)
    assert output.indices.flatten().tolist() == golden.array("idx").tolist()
    golden.close("zq", output.quantized, atol=1e-6)
    golden.close("vq_loss", output.codebook_loss, atol=1e-6)
    golden.close("commit_loss", output.commitment_loss, atol=1e-6)
    golden.close("entropy_loss", output.entropy_loss, atol=1e-5)
    golden.close("grad_vq_vqkd", gradient(output.codebook_loss, quantizer.codebooks[0]), atol=1e-8)
    golden.close("grad_vq_vqgan", gradient(output.codebook_loss, quantizer.codebooks[1]), atol=1e-8)
    golden.close("grad_commit_z", gradient(output.commitment_loss, features), atol=1e-9)
    golden.close("grad_entropy_z", gradient(output.entropy_loss, features), atol=2e-6)
    golden.close("grad_entropy_vqkd", gradient(output.entropy_loss, quantizer.codebooks[0]), atol=5e-6)
    golden.close("grad_entropy_vqgan", gradient(output.entropy_loss, quantizer.codebooks[1]), atol=5e-6)
    straight_through = gradient((output.quantized * golden.array("cot")).sum(), features)
    golden.close("grad_ste_z", straight_through, atol=1e-6)


@pytest.mark.parametrize("golden", goldens("vq_multiscale_train"))
def test_residual_loop(golden):
    quantizer = authors_quantizer(golden.offset, scales=tuple(golden.array("scales").tolist()))
    features = golden.array("h").requires_grad_()
    output = quantizer(features)
    assert output.indices.tolist() == golden.array("indices").tolist()
    golden.close("final_quantize", output.quantized, atol=1e-6)
    golden.close("vq_loss", output.codebook_loss, atol=1e-6)
    golden.close("commit_loss", output.commitment_loss, atol=1e-6)
    losses = output.codebook_loss + output.commitment_loss
    golden.close("grad_losses_h", gradient(losses, features), atol=1e-9)
    golden.close("grad_losses_vqkd", gradient(losses, quantizer.quantizer.codebooks[0]), atol=1e-8)
    golden.close("grad_losses_vqgan", gradient(losses, quantizer.quantizer.codebooks[1]), atol=1e-8)
    golden.close("grad_ste_h", gradient((output.quantized * golden.array("cot")).sum(), features), atol=2e-6)


@pytest.mark.parametrize(("name", "dropped"), [("drop4", 2), ("drop_last", 4)])
@pytest.mark.parametrize("full", goldens("vq_multiscale_train"))
def test_residual_loop_with_a_dropped_scale(full, name, dropped):
    golden = full.sibling(f"vq_multiscale_train_{name}")
    quantizer = authors_quantizer(golden.offset, scales=tuple(full.array("scales").tolist()))
    output = quantizer(full.array("h"), dropped_scale=dropped)
    kept = [row[row != DROPPED].tolist() for row in output.indices]  # the authors leave the dropped codes out
    assert kept == golden.array("indices").tolist()
    golden.close("final_quantize", output.quantized, atol=1e-6)
    golden.close("vq_loss", output.codebook_loss, atol=1e-6)
    golden.close("commit_loss", output.commitment_loss, atol=1e-6)


@pytest.mark.parametrize("golden", goldens("t2i_tower_features"))
def test_scale_inputs_are_the_generators(golden):
    quantizer = MultiScaleQuantizer(QuantizerConfig(codebook_size=32768, scales=(1, 2, 4, 6, 8, 10, 12, 14, 16)))
    with torch.no_grad():
        for key, codebook in zip(AUTHORS_KEYS, quantizer.quantizer.codebooks, strict=True):
            codebook.copy_(weight(f"quantize.{key}", tuple(codebook.shape), offset=golden.offset))
        inputs = quantizer.scale_inputs(golden.array("codes").long())
    golden.close("features", inputs, atol=2e-3)  # stored in fp16, values up to 3.7

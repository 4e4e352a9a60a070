import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.data import DataConfig, EvaluationBatches, SourceConfig
from tokenflow.evaluation.evaluate import (
    EvaluationProtocol,
    TokenizerEvaluation,
    evaluate_tokenizer,
)
from tokenflow.evaluation.measure import NOT_MEASURED, NotMeasured


class CoarseTokenizer(torch.nn.Module):
    """Codes are the grey level of each quarter of the picture in sixteen steps, at scales 1 and 2."""

    config = SimpleNamespace(codebook_size=16, scales=(1, 2), image_size=16)

    def encode(self, images):
        parts = [torch.nn.functional.adaptive_avg_pool2d(images.mean(1), scale).flatten(1) for scale in (1, 2)]
        return ((torch.cat(parts, 1) + 1) * 7.5).round().long()

    def decode(self, codes):
        assert not self.training
        quarters = (codes[:, 1:] / 7.5 - 1).view(-1, 1, 2, 2).expand(-1, 3, 2, 2)
        return torch.nn.functional.interpolate(quarters, size=(16, 16))


def batches(count: int = 10, size: int = 4):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for start in range(0, count, size):
        yield {"images": images[start : start + size], "keys": [str(i) for i in range(start, min(start + size, count))]}


def teacher(images):
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)


def test_metrics_protocol_and_files(tmp_path):
    tokenizer = CoarseTokenizer().train()
    result = evaluate_tokenizer(
        tokenizer,
        batches(),
        teacher=teacher,
        perceptual=NotMeasured("VGG is away"),
        verifier=lambda pictures, records: sum(int(key) < 4 for key in records) / len(records),
        protocol=EvaluationProtocol(reference="ten random pictures", crop="none", rounding="trunc"),
        pictures=5,
    )
    assert tokenizer.training
    assert result.metrics["lpips"] == result.metrics["rfid"] == NOT_MEASURED
    assert result.metrics["verifier"] == result.metrics["verifier_original"] == pytest.approx(0.4)
    assert {"psnr", "ssim", "ssim_authors", "frechet_teacher", "usage", "usage/scale_2", "perplexity"} <= set(
        result.metrics
    )
    assert result.protocol["images"] == 10
    assert result.protocol["rounding"] == "trunc"
    assert result.protocol["not_measured"] == {"lpips": "VGG is away", "rfid": "not asked for"}
    assert "biased" in result.protocol["warnings"]["frechet_teacher"]
    assert result.originals.shape == (5, 16, 16, 3)

    result.save(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "result.json").read_text())
    assert saved["metrics"] == result.metrics
    assert saved["protocol"]["versions"]["torch"] == result.protocol["versions"]["torch"]
    assert np.array_equal(np.array(Image.open(tmp_path / "new" / "grid.png")), result.grid)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["grid.png", "result.json"]


def padded(batch, size):
    missing = size - len(batch["images"])
    images = torch.cat([batch["images"], batch["images"][:1].expand(missing, -1, -1, -1)])
    valid = torch.arange(size) < size - missing
    return {"images": images, "keys": batch["keys"] + ["0"] * missing, "mask": valid}


def test_two_ranks_with_a_padded_last_batch_equal_one():
    settings = {"teacher": teacher, "verifier": lambda pictures, records: 1.0}
    one = evaluate_tokenizer(CoarseTokenizer().eval(), batches(), **settings)

    ranks = [TokenizerEvaluation(CoarseTokenizer().eval(), **settings) for _ in range(2)]
    for index, batch in enumerate(batches(size=3)):
        ranks[index % 2].update(padded(batch, 3))
    sent: list[torch.Tensor] = []
    ranks[1].compute(lambda tensor: sent.append(tensor.clone()) or tensor)
    result = ranks[0].compute(lambda tensor: tensor + sent.pop(0))

    assert result.protocol["images"] == 10
    assert torch.equal(result.histogram, one.histogram)
    assert result.metrics.pop("frechet_teacher") == pytest.approx(one.metrics.pop("frechet_teacher"), rel=1e-9)
    assert result.metrics == one.metrics


def over_ranks(evaluations):
    """`compute` of all ranks, as a sum over ranks would give it to each."""
    sent: list[list[torch.Tensor]] = []
    for evaluation in evaluations[1:]:
        sent.append([])
        evaluation.compute(lambda tensor: sent[-1].append(tensor.clone()) or tensor)
    return evaluations[0].compute(lambda tensor: sum((row.pop(0) for row in sent), start=tensor))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_number_of_ranks_gives_every_measure_of_one(tmp_path, world_size, num_workers):
    # 25 pictures are divisible by no ranks x batch here; at 4 ranks the last has nothing but padding in its last batch.
    levels = np.random.default_rng(0)
    for number in range(25):
        Image.fromarray(levels.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")
    for number in (3, 24):
        (tmp_path / f"{number:02d}.png").write_bytes(b"broken")
    data = DataConfig(sources=(SourceConfig(path=str(tmp_path)),), image_size=16)
    settings = {
        "teacher": teacher,
        "inception": lambda images: images.float().mean(dim=(2, 3)) / 255,
        "perceptual": lambda x, y: (x - y).square().mean(dim=(1, 2, 3)),
    }
    one = evaluate_tokenizer(CoarseTokenizer().eval(), EvaluationBatches(data, batch_size=4), **settings)
    ranks = []
    for rank in range(world_size):
        ranks.append(TokenizerEvaluation(CoarseTokenizer().eval(), **settings))
        for batch in EvaluationBatches(
            data, batch_size=4, rank=rank, world_size=world_size, num_workers=num_workers if rank else 0
        ):
            ranks[-1].update(batch)
    result = over_ranks(ranks)
    assert one.protocol["images"] == result.protocol["images"] == 23
    assert torch.equal(result.histogram, one.histogram)
    for name in ("frechet_teacher", "rfid"):
        # Grey reconstructions: the root of a singular covariance turns 1e-16 of another order of sums into 1e-8.
        assert result.metrics.pop(name) == pytest.approx(one.metrics.pop(name), rel=1e-6)
    assert result.metrics == one.metrics and isinstance(one.metrics["lpips"], float)


def test_a_rank_with_nothing_but_padding_takes_part():
    one = evaluate_tokenizer(CoarseTokenizer().eval(), batches(count=4), teacher=teacher)
    ranks = [TokenizerEvaluation(CoarseTokenizer().eval(), teacher=teacher) for _ in range(2)]
    batch = next(batches(count=4))
    ranks[0].update(batch)
    ranks[1].update(batch | {"mask": torch.zeros(4, dtype=torch.bool)})
    sent: list[torch.Tensor] = []
    ranks[0].compute(lambda tensor: sent.append(tensor.clone()) or tensor)
    result = ranks[1].compute(lambda tensor: tensor + sent.pop(0))
    assert result.metrics == one.metrics
    assert len(result.originals) == 0 and result.grid.shape == (1, 1, 3)


def test_a_saved_evaluation_continues(tmp_path):
    settings = {"teacher": teacher, "verifier": lambda pictures, records: 1.0, "pictures": 6}
    whole = evaluate_tokenizer(CoarseTokenizer().eval(), batches(), **settings)
    first = TokenizerEvaluation(CoarseTokenizer().eval(), **settings)
    parts = list(batches())
    first.update(parts[0])
    torch.save(first.state_dict(), tmp_path / "partial.pt")
    second = TokenizerEvaluation(CoarseTokenizer().eval(), **settings)
    second.load_state_dict(torch.load(tmp_path / "partial.pt", weights_only=True))
    for batch in parts[1:]:
        second.update(batch)
    result = second.compute()
    assert result.metrics == whole.metrics
    assert np.array_equal(result.grid, whole.grid)
    with pytest.raises(ValueError, match="teacher"):
        TokenizerEvaluation(CoarseTokenizer().eval()).load_state_dict(first.state_dict())


def test_the_reconstruction_goes_through_the_codes():
    result = evaluate_tokenizer(CoarseTokenizer().eval(), batches())
    picture = result.reconstructions[0]
    assert (picture[:8, :8] == picture[0, 0]).all()


def test_no_images_and_no_records_are_errors():
    with pytest.raises(ValueError, match="no images"):
        evaluate_tokenizer(CoarseTokenizer().eval(), [])
    nameless = [{"images": torch.zeros(2, 3, 16, 16)}]
    with pytest.raises(ValueError, match="records"):
        evaluate_tokenizer(CoarseTokenizer().eval(), nameless, verifier=lambda pictures, records: 1.0)

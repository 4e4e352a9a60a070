import dataclasses

import pytest
import torch

from tests.evaluation.test_evaluate import CoarseTokenizer, batches, teacher
from tests.evaluation.test_report import Page
from tokenflow.evaluation.evaluate import EvaluationProtocol, evaluate_tokenizer
from tokenflow.evaluation.measure import NotMeasured
from tokenflow.evaluation.report import Report
from tokenflow.evaluation.sections import decoder_section, key_numbers, protocol_rows, tokenizer_section


@pytest.fixture(scope="module")
def result():
    return evaluate_tokenizer(
        CoarseTokenizer().eval(),
        batches(),
        teacher=teacher,
        perceptual=NotMeasured("VGG is away"),
        verifier=lambda pictures, records: 1.0,
        protocol=EvaluationProtocol(reference="ten random pictures"),
    )


def test_the_section_shows_numbers_pictures_curves_and_protocol(result):
    metrics = [
        {"step": step, "loss": 1.0, "reconstruction": 0.5, "psnr": 20.0, "evaluation/psnr": 19.0,
         "evaluation/usage": 0.5, "evaluation/usage/scale_1": 0.2, "evaluation/usage/scale_2": 0.4}
        for step in range(3)
    ]  # fmt: skip
    report = Report("t")
    tokenizer_section(report, result, metrics, targets={"psnr": 1.0, "usage": 2.0}, captions=["first & best"])
    page = Page(report.html())
    for words in ("VGG is away", "ten random pictures", "first & best", "Loss terms", "held back", "scale 2", "torch"):
        assert words in page.text
    marks = [a["class"] for _, a in page.tags if a.get("class", "").startswith("mark")]
    assert marks == ["mark good", "mark bad"]
    assert sum(tag == "img" for tag, _ in page.tags) == 3 * 8
    assert sum(tag == "svg" for tag, _ in page.tags) == 4 + 3


def test_without_a_run_there_are_no_empty_charts(result):
    report = Report("t")
    tokenizer_section(report, result)
    assert "no values yet" not in report.html()


def test_what_was_not_measured_says_why(result):
    rows = {name: (value, how) for name, value, how in protocol_rows(result)}
    assert rows["LPIPS"] == ("not measured", "VGG is away")
    assert rows["Pictures"][0] == 10
    card = next(item for item in key_numbers(result, {}) if item.name == "LPIPS")
    assert not card.measured and card.reached is None
    assert torch.equal(result.histogram.sum(1), torch.tensor([10, 40]))


def test_two_decoders_stand_beside_the_originals_and_are_compared(result):
    rows = [{"step": step, "loss": 1.0, "evaluation/psnr": 21.0, "evaluation/psnr_base": 20.0} for step in range(3)]
    better = dataclasses.replace(result, metrics=result.metrics | {"psnr": result.metrics["psnr"] + 1})
    report = Report("t")
    decoder_section(report, result, better, rows, title="Decoder")
    page = Page(report.html())
    for words in ("base decoder", "enhanced decoder", "Decoder: PSNR on pictures held back", "Fine-detail error"):
        assert words in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 5 * 8
    marks = [a["class"] for _, a in page.tags if a.get("class", "").startswith("mark")]
    assert marks and set(marks) == {"mark good"}


def test_decoders_of_different_pictures_are_not_compared(result):
    other = dataclasses.replace(result, originals=255 - result.originals)
    with pytest.raises(ValueError, match="different pictures"):
        decoder_section(Report("t"), result, other)

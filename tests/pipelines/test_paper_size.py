"""TokenFlow-B at its full size really trains on a CPU: two steps, random weights, one picture of 224 pixels."""

import json

import pytest

from tests.train.launching import curve, run
from tokenflow.data import write_shapes
from tokenflow.train import read_rows

pytestmark = pytest.mark.slow


def test_tokenflow_b_trains_two_steps_on_the_cpu(tmp_path):
    write_shapes(tmp_path / "data", num_samples=4, image_size=224, seed=0)
    output = tmp_path / "run"
    run(
        *("--recipe", "tokenflow-b", "--data", tmp_path / "data", "--output", output, "--data.num_workers", 0),
        *("--model.pretrained", "random", "--teacher.pretrained", "random", "--loss.perceptual_checkpoint", "random"),
        *("--train.steps", 2, "--train.global_batch_size", 1, "--train.micro_batch_size", 1, "--train.log_every", 1),
        *("--train.evaluate_every", 0, "--train.save_every", 0, "--train.precision", "fp32"),
        *("--loss.discriminator_start", 0, "--loss.adversarial_start", 1, "--tracking.mlflow", "false"),
        module="pipelines.tokenizer_pretrain",
        timeout=1200,
    )
    losses = curve(output, "loss")
    assert len(losses) == 2 and all(loss is not None for loss in losses)
    first, second = (row for row in read_rows(output / "metrics.jsonl") if row["kind"] == "train")
    assert "adversarial" not in first and second["adversarial"] is not None
    config = json.loads((output / "model" / "config.json").read_text())
    assert json.dumps(config).count("32768") >= 1

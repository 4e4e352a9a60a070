"""A very small built-in world with a teacher, and the options that make the nano recipes run on it in seconds."""

from pathlib import Path

import pytest

from tests.train.launching import run
from tokenflow.data import write_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "deepspeed_configs"
TEACHER = "pipelines.teacher_pretrain"
TOKENIZER = "pipelines.tokenizer_pretrain"


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with `train`, `seen` (shards) and `teacher/model`."""
    folder = tmp_path_factory.mktemp("world")
    write_shapes(folder / "train", num_samples=96, image_size=32, seed=0)
    write_shapes(folder / "seen", num_samples=16, image_size=32, seed=1, split="seen")
    run(
        *("--recipe", "nano", "--data", folder / "train", "--output", folder / "teacher", "--train.steps", 2),
        *("--train.global_batch_size", 16, "--train.micro_batch_size", 16, "--tracking.mlflow", "false"),
        module=TEACHER,
    )
    return folder


def tokenizer_options(world: Path, output: Path, *, steps: int = 6) -> list[object]:
    """Options of a short nano run whose discriminator starts at step 1 and is felt from step 2 on."""
    return [
        *("--recipe", "nano", "--data", world / "train", "--output", output),
        *("--evaluation_sources", f'[{{"path": "{world / "seen"}"}}]', "--evaluation_images", 16),
        *("--model.pretrained", world / "teacher/model", "--teacher.pretrained", world / "teacher/model"),
        *("--train.steps", steps, "--train.global_batch_size", 16, "--train.micro_batch_size", 8),
        *("--train.log_every", 1, "--train.evaluate_every", 3, "--train.save_every", 2),
        *("--loss.discriminator_start", 1, "--loss.adversarial_start", 2, "--loss.adversarial_ramp", 2),
        *("--tracking.system_metrics", "false", "--usage_window", 32),
    ]

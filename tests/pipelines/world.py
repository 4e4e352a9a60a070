"""A very small built-in world with a teacher, and the options that make the nano recipes run on it in seconds."""

from pathlib import Path

import pytest

from tests.train.launching import run
from tokenflow.data import write_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "deepspeed_configs"
TEACHER = "pipelines.teacher_pretrain"
TOKENIZER = "pipelines.tokenizer_pretrain"
DECODER = "pipelines.decoder_finetune"
GENERATOR = "pipelines.gen_pretrain"


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


@pytest.fixture(scope="session")
def barely_trained(world) -> Path:
    """The folder of a nano tokenizer after two steps."""
    run(*tokenizer_options(world, world / "tokenizer", steps=2), "--tracking.mlflow", "false", module=TOKENIZER)
    return world / "tokenizer" / "model"


def tokenizer_options(world: Path, output: Path, *, steps: int = 6) -> list[object]:
    """Options of a short nano run whose discriminator starts at step 1 and is felt from step 2 on."""
    return [
        *short_run(world, output, steps=steps),
        *early_adversary(),
        *("--model.pretrained", world / "teacher/model", "--teacher.pretrained", world / "teacher/model"),
        *("--usage_window", 32),
    ]


def decoder_options(world: Path, tokenizer: Path, output: Path, *, steps: int = 6) -> list[object]:
    """The same for the decoder of a tokenizer."""
    return [*short_run(world, output, steps=steps), *early_adversary(), "--tokenizer", tokenizer]


def generator_options(
    world: Path, tokenizer: Path, output: Path, *, steps: int = 6, optimizer: str = "adamw"
) -> list[object]:
    """The same for a generator on a tokenizer; what training draws is drawn often."""
    return [
        *(*short_run(world, output, steps=steps), "--tokenizer", tokenizer),
        *("--caption_drop", 0.3, "--first_sentence", 0.3),
        *("--model.language.depth", 2, "--model.language.width", 64, "--model.language.head_width", 16),
        *("--model.language.mlp_width", 128),
        *("--optimizer.name", optimizer, "--optimizer.learning_rate", 3e-3),
    ]


def short_run(world: Path, output: Path, *, steps: int) -> list[object]:
    """What the stages' options have in common."""
    return [
        *("--recipe", "nano", "--data", world / "train", "--output", output),
        *("--evaluation_sources", f'[{{"path": "{world / "seen"}"}}]', "--evaluation_images", 16),
        *("--train.steps", steps, "--train.global_batch_size", 16, "--train.micro_batch_size", 8),
        *("--train.log_every", 1, "--train.evaluate_every", 3, "--train.save_every", 2),
        *("--tracking.system_metrics", "false"),
    ]


def early_adversary() -> list[object]:
    """A discriminator that is there, and felt, within a few steps."""
    return ["--loss.discriminator_start", 1, "--loss.adversarial_start", 2, "--loss.adversarial_ramp", 2]

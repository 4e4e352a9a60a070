"""What a stage 1 run will be, before it touches data or a device: parameters, tokens, memory, recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import nn

from tokenflow.config import Launch, to_yaml
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.tokenizer.discriminators import build_discriminator
from tokenflow.tokenizer.losses import TokenizerLossConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher
from tokenflow.train import TrainConfig, zero_stage
from tokenflow.train.memory import estimate_memory

VGG16_PARAMETERS = 14_714_688
"""Of LPIPS' trunk; its linear heads are 1472 more."""
GPU_COUNTS = (1, 8, 64)


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, also on `meta`."""
    return sum(parameter.numel() for parameter in module.parameters())


def print_plan(recipe: TokenizerRecipe, launch: Launch) -> None:
    """Print parameters, tokens an image, estimated memory a GPU and the resolved recipe."""
    for line in plan(recipe, launch):
        print(line)


def plan(recipe: TokenizerRecipe, launch: Launch) -> Iterator[str]:
    """The lines that `print_plan` prints."""
    config = recipe.model.config()
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
        adversary = count_discriminator(recipe.loss, image_size=config.image_size)
        teacher = recipe.teacher.config(recipe.model.preset)
        teacher_parameters = 0 if teacher is None else count_parameters(Teacher(teacher))
    parts = {name: count_parameters(part) for name, part in tokenizer.named_children()}
    trained = sum(p.numel() for p in tokenizer.parameters() if p.requires_grad)
    frozen = teacher_parameters + (VGG16_PARAMETERS if recipe.loss.perceptual == "lpips" else 0)
    yield f"# {recipe.model.preset}, {config.image_size} pixels, codebook {config.codebook_size}"
    yield ""
    for name, count in {**parts, "tokenizer in all": sum(parts.values()), "discriminator": adversary}.items():
        yield f"{name:<28} {count:>14,} parameters"
    yield f"{'frozen teacher, perceptual':<28} {frozen:>14,} parameters"
    yield f"{'tokens an image':<28} {config.num_tokens:>14,} = sum of squares of {config.scales}"
    yield ""
    yield from memory_lines(recipe.train, launch, trained=trained, adversary=adversary, frozen=frozen)
    yield ""
    yield "# resolved recipe"
    yield to_yaml(recipe)


def memory_lines(train: TrainConfig, launch: Launch, *, trained: int, adversary: int, frozen: int) -> Iterator[str]:
    """Estimated memory a GPU, a line for each number of GPUs; `adversary` is the discriminator's parameters."""
    json = launch.deepspeed()
    launched = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "0")))
    counts = sorted({*GPU_COUNTS, launched} - {0})
    yield f"# memory a GPU for states under ZeRO-{zero_stage(json)}, {train.precision}; activations come on top"
    for world_size in counts:
        both = [
            estimate_memory(
                trained=parameters,
                deepspeed=json,
                world_size=world_size,
                precision=train.precision,
                averaged=averaged,
            )
            for parameters, averaged in ((trained, train.ema_decay is not None), (adversary, False))
            if parameters
        ]
        total = sum(estimate.total for estimate in both) + 4 * frozen
        yield f"{world_size:>4} GPUs  {total / 1024**3:8.2f} GiB, of it {4 * frozen / 1024**3:.2f} GiB frozen networks"


def count_discriminator(loss: TokenizerLossConfig, *, image_size: int) -> int:
    """Parameters of the discriminator that a loss asks for."""
    if loss.discriminator == "none":
        return 0
    with torch.device("meta"):
        discriminator = build_discriminator(
            loss.discriminator,
            image_size=image_size,
            channels=loss.discriminator_channels,
            layers=loss.discriminator_layers,
        )
    return count_parameters(discriminator)

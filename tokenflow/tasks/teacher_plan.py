"""What a teacher's run will be, before it touches data or a device: parameters, memory, compute, recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenflow.config import Launch, to_yaml
from tokenflow.tasks.cost import TRAINED, Cost, cost_lines, cost_of, count_parameters, forward_flops
from tokenflow.tasks.teacher import ContrastiveModel, TeacherRecipe
from tokenflow.tasks.tokenizer_plan import gpu_counts


def print_plan(recipe: TeacherRecipe, launch: Launch) -> None:
    """Print parameters, estimated memory and compute, and the resolved recipe."""
    for line in plan(recipe, launch):
        print(line)


def plan(recipe: TeacherRecipe, launch: Launch) -> Iterator[str]:
    """The lines that `print_plan` prints."""
    cost = cost_of_teacher(recipe)
    yield f"# a teacher for {recipe.model.image_size} pixels"
    yield ""
    yield f"{'both towers':<28} {cost.engines[0].trained:>14,} parameters"
    yield ""
    yield from cost_lines(cost, launch, gpus=gpu_counts())
    yield ""
    yield "# resolved recipe"
    yield to_yaml(recipe)


def cost_of_teacher(recipe: TeacherRecipe) -> Cost:
    """States and operations of a teacher's training."""
    model = recipe.model
    with torch.device("meta"):
        trained = count_parameters(ContrastiveModel(model))

    def batch() -> dict[str, torch.Tensor]:
        images = torch.zeros(1, 3, model.image_size, model.image_size)
        tokens = torch.zeros(1, model.context_length, dtype=torch.int64)
        return {"images": images, "tokens": tokens, "same": torch.ones(1, 1)}

    return cost_of(
        recipe.train,
        unit="pictures",
        flops=TRAINED * forward_flops(lambda: ContrastiveModel(model), batch),
        kind="transformer",
        trained=trained,
    )

"""What a teacher's run will be, before it touches data or a device: parameters, memory, compute, recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenflow.config import Launch
from tokenflow.tasks.cost import TRAINED, Cost, closing_lines, cost_of, count_parameters, forward_flops, parameter_line
from tokenflow.tasks.teacher import ContrastiveModel, TeacherRecipe


def plan(recipe: TeacherRecipe, launch: Launch) -> Iterator[str]:
    """Lines of a dry run: parameters, estimated memory and compute, the resolved recipe."""
    cost = cost_of_teacher(recipe)
    yield f"# a teacher for {recipe.model.image_size} pixels"
    yield ""
    yield parameter_line("both towers", cost.engines[0].trained)
    yield from closing_lines(cost, recipe, launch)


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

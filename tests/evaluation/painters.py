"""Painters that need no training: they draw the scene of a built-in prompt, or a wrong one where told to."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenflow.data.captions import PROMPT_KINDS, Prompt, prompts
from tokenflow.data.shapes import COLOURS, Scene, SceneObject, draw

PLACES = {
    None: ((0.25, 0.3), (0.72, 0.3), (0.5, 0.75)),
    "left of": ((0.25, 0.5), (0.75, 0.5)),
    "right of": ((0.75, 0.5), (0.25, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
    "below": ((0.5, 0.75), (0.5, 0.25)),
}


def scene_of(prompt: Prompt) -> Scene:
    """A scene that shows exactly what the prompt says."""
    places = ((0.5, 0.5),) if len(prompt.objects) == 1 else PLACES[prompt.relation]
    objects = tuple(
        SceneObject(shape=shape, colour=colour or next(iter(COLOURS)), x=x, y=y, radius=0.17, light=1.0)
        for (shape, colour), (x, y) in zip(prompt.objects, places, strict=False)
    )
    return Scene(kind="single", objects=objects, background=0.7, phrasing=0)


class DrawingPainter:
    """Draws prompts rightly where `right(prompt, image index, options)` says so, else an empty picture."""

    def __init__(
        self, right: Callable[[Prompt, int, dict[str, Any]], bool] = lambda *_: True, *, size: int = 64
    ) -> None:
        self.known = {
            prompt.text: prompt
            for kind in PROMPT_KINDS
            for split in ("seen", "heldout")
            for prompt in prompts(kind, split, count=40, seed=1)
        }
        self.right, self.size = right, size
        self.calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def generate(self, prompts: Sequence[str], **options: Any) -> Tensor:
        self.calls.append((tuple(prompts), options))
        pictures = []
        for index, text in enumerate(prompts, start=options["first_image"]):
            prompt = self.known[text]
            right = self.right(prompt, index, options)
            scene = scene_of(prompt) if right else Scene(
                kind="single", objects=(), background=0.7, phrasing=0
            )  # fmt: skip
            pictures.append(draw(scene, self.size))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class NoisePainter:
    """Pictures that are a function of the prompt and the image's index alone."""

    def __init__(self, *, size: int = 8) -> None:
        self.size = size
        self.calls: list[tuple[tuple[str, ...], int]] = []

    def generate(self, prompts: Sequence[str], *, first_image: int, **_: Any) -> Tensor:
        self.calls.append((tuple(prompts), first_image))
        images = [
            torch.rand(3, self.size, self.size, generator=torch.Generator().manual_seed(1000 * len(text) + index))
            for index, text in enumerate(prompts, start=first_image)
        ]
        return torch.stack(images) * 2 - 1

"""Models that see, without a model: they read the picture with the verifier, or do not look at all."""

import re

import numpy as np

from tokenflow.data.captions import plural
from tokenflow.data.shapes import COLOURS, SHAPES
from tokenflow.data.verifier import read_objects


class Looker:
    """Answers what the verifier reads from the picture."""

    def __init__(self, blind_to=()):
        self.blind_to = blind_to
        self.calls = []

    def answer(self, images, questions):
        self.calls.append(len(questions))
        return [self._answer(image, question) for image, question in zip(images, questions, strict=True)]

    def _answer(self, image, question):
        found = [item for item in read_objects(np.asarray(image)) if item.colour not in self.blind_to]
        words = re.findall(r"\w+", question)
        colours = [word for word in words if word in COLOURS]
        shapes = [shape for word in words for shape in SHAPES if word in (shape, plural(shape))]
        chosen = [i for i in found if (not colours or i.colour in colours) and (not shapes or i.shape in shapes)]
        if question.startswith("is there"):
            return "yes" if chosen else "no"
        if question.startswith("how many"):
            return ("zero", "one", "two", "three")[len(chosen)]
        if not chosen:
            return ""
        if question.startswith("what colour"):
            return chosen[0].colour
        if question.startswith("what shape"):
            return chosen[0].shape
        if "relative" not in words:
            item = chosen[0]
            return f"{'top' if item.y < 0.5 else 'bottom'} {'left' if item.x < 0.5 else 'right'}"
        by_name = {(item.colour, item.shape): item for item in found}
        named = [by_name.get(pair) for pair in zip(colours, shapes, strict=True)]
        if None in named:
            return ""
        first, second = named
        dx, dy = first.x - second.x, first.y - second.y
        return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")


class Parrot:
    """Says one thing."""

    def __init__(self, text):
        self.text = text

    def answer(self, images, questions):
        return [self.text] * len(questions)

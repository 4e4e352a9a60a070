"""Pictures become square as asked for."""

import pytest
import torch
from PIL import Image

from tokenflow.understanding.preprocess import GREY, make_square, read_picture, read_pictures

RED = (250, 10, 10)


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (31, 10), (20, 20)])
def test_padding_keeps_the_picture_in_the_middle_of_grey(size):
    side = max(size)
    square = make_square(Image.new("RGB", size, RED), size=side, aspect="pad")
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    expected = Image.new("RGB", (side, side), GREY)
    expected.paste(RED, (left, top, left + size[0], top + size[1]))
    assert square.tobytes() == expected.tobytes()


def test_stretching_and_cropping_fill_the_square():
    picture = Image.new("RGB", (30, 10), RED)
    for aspect in ("stretch", "crop"):
        assert make_square(picture, size=10, aspect=aspect).tobytes() == Image.new("RGB", (10, 10), RED).tobytes()


def test_grey_pictures_and_tensors_are_read():
    grey = read_picture(Image.new("L", (8, 8), 255), size=8, aspect="pad")
    assert grey.shape == (3, 8, 8) and (grey == 1).all()
    tensor = torch.rand(3, 8, 8)
    both = read_pictures([tensor, Image.new("RGB", (8, 8), RED)], size=8, aspect="pad")
    assert torch.equal(both[0], tensor) and both.shape == (2, 3, 8, 8)
    assert read_pictures([], size=8, aspect="pad").shape == (0, 3, 8, 8)

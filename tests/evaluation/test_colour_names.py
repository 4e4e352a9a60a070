"""Colours of objects: the palette rule on plain patches, and CLIP's plumbing on a tiny random model."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, resize

from tokenflow.evaluation.colour_names import (
    BACKGROUND,
    PALETTE,
    ClipColours,
    PaletteColours,
    load_colours,
    to_lab,
)
from tokenflow.evaluation.geneval_score import COLOURS, Detection
from tokenflow.evaluation.measure import NotMeasured


def patch(colour, *, mask=False):
    """A patch at rows 4-11 and columns 6-15 of a picture that is half green, half white."""
    picture = np.zeros((20, 24, 3), np.uint8)
    picture[:, :12], picture[:, 12:] = (0, 200, 0), 255
    picture[4:12, 6:16] = colour
    area = np.zeros(picture.shape[:2], bool)
    area[4:12, 6:16] = True
    item = Detection(label="car", confidence=1.0, box=(6.0, 4.0, 16.0, 12.0), mask=area if mask else None)
    return picture, item


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("light", [0.85, 1.0])
@pytest.mark.parametrize("name", COLOURS)
def test_the_palette_rule_names_its_own_colours_in_other_light(name, light, mask):
    picture, item = patch(np.round(np.array(PALETTE[name][0]) * light), mask=mask)
    assert PaletteColours()(picture, [item, item]) == [name, name]


def test_plain_colours_are_named():
    plain = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "black": (0, 0, 0)}
    for name, colour in plain.items():
        picture, item = patch(colour)
        assert PaletteColours()(picture, [item]) == [name]


def test_lab_of_white_black_and_red():
    values = to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    assert np.allclose(values, [[100, 0, 0], [0, 0, 0], [53.2, 80.1, 67.2]], atol=0.3)


def test_boxes_beyond_the_picture_are_cut():
    picture, _ = patch((255, 0, 0))
    item = Detection(label="car", confidence=1.0, box=(-30.0, -5.0, 90.0, 0.2))
    assert PaletteColours()(picture, [item])[0] in COLOURS


@pytest.fixture
def clip():
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 1, "width": 64, "patch_size": 8, "image_size": 16},
        text_cfg={"layers": 1, "width": 64, "heads": 1, "context_length": 77},
    )
    seen = []

    def preprocess(image):
        seen.append(np.asarray(image))
        return pil_to_tensor(resize(image, [16, 16])).float() / 255

    return ClipColours(model, preprocess, open_clip.get_tokenizer("ViT-L-14"), name="tiny"), seen


def test_clip_sees_the_box_with_grey_outside_the_mask(clip):
    name, seen = clip
    picture, item = patch((10, 20, 30), mask=True)
    item.mask[4:12, 6:8] = False
    colours = name(picture, [item, item])
    assert len(colours) == 2 and set(colours) <= set(COLOURS)
    assert seen[0].shape == (8, 10, 3)
    assert (seen[0][:, :2] == BACKGROUND).all() and (seen[0][:, 2:] == (10, 20, 30)).all()
    assert name(picture, []) == []


def test_clips_answer_is_the_argmax_over_three_wordings(clip):
    name, _ = clip
    picture, item = patch((200, 20, 30))
    image = name.preprocess(Image.fromarray(picture[4:12, 6:16]))[None]
    scores = []
    with torch.no_grad():
        features = torch.nn.functional.normalize(name.model.encode_image(image), dim=-1)
        for colour in COLOURS:
            texts = [
                f"a photo of a {colour} car",
                f"a photo of a {colour}-colored car",
                f"a photo of a {colour} object",
            ]
            rows = name.model.encode_text(open_clip.get_tokenizer("ViT-L-14")(texts))
            mean = torch.nn.functional.normalize(rows, dim=-1).mean(0)
            scores.append(float(features[0] @ mean / mean.norm()))
    assert name(picture, [item]) == [COLOURS[int(np.argmax(scores))]]


def test_weights_that_are_not_there_are_said(tmp_path):
    absent = load_colours("clip", clip_weights=str(tmp_path / "none.pt"))
    assert isinstance(absent, NotMeasured) and "none.pt" in absent.reason
    assert load_colours("palette").name.startswith("palette")

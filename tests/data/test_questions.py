from collections import Counter

import pytest

from tokenflow.data.captions import plural
from tokenflow.data.questions import NEGATIVES, QUESTION_KINDS, questions, quiz
from tokenflow.data.shapes import COLOURS, HELD_OUT_PAIRS, SHAPES, SceneSampler, draw
from tokenflow.data.verifier import read_objects

SPLITS = ("seen", "heldout")


def looked_up(scene, question):
    """The answer, worked out from the words of the question."""
    words = question.removesuffix("?").split()
    named = [
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if f"{colour} {shape}" in question and (colour, shape) in {(o.colour, o.shape) for o in scene.objects}
    ]
    colours = [word for word in words if word in COLOURS]
    shapes = [shape for shape in SHAPES if shape in words or plural(shape) in words]
    chosen = [o for o in scene.objects if (not colours or o.colour in colours) and (not shapes or o.shape in shapes)]
    if question.startswith("how many"):
        return ("zero", "one", "two", "three")[len(chosen)]
    if question.startswith("is there"):
        return "yes" if named else "no"
    if question.startswith("what colour"):
        (answer,) = {o.colour for o in chosen}
        return answer
    if question.startswith("what shape"):
        (answer,) = {o.shape for o in chosen}
        return answer
    if "relative" in words:
        subject, other = question.removeprefix("where is the ").split(" relative to the ")
        first = next(o for o in scene.objects if f"{o.colour} {o.shape}" == subject)
        second = next(o for o in scene.objects if f"{o.colour} {o.shape}" == other.removesuffix("?"))
        dx, dy = first.x - second.x, first.y - second.y
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")
    item = scene.objects[0]
    return f"{'bottom' if item.y > 0.5 else 'top'} {'right' if item.x > 0.5 else 'left'}"


@pytest.mark.parametrize("split", ["train", *SPLITS])
def test_every_answer_is_what_the_scene_says(split):
    for index in range(300):
        scene = SceneSampler(0, split)[index]
        for item in questions(scene):
            assert looked_up(scene, item.question) == item.answer, (item, scene)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_quiz_has_one_kind_and_right_answers_and_is_the_same_every_time(kind, split):
    items = quiz(kind, split, count=90, seed=4)
    assert items == quiz(kind, split, count=90, seed=4) != quiz(kind, split, count=90, seed=5)
    assert items[:30] == quiz(kind, split, count=30, seed=4)
    assert [item.number for item in items] == list(range(90))
    for item in items:
        assert item.question.kind == kind and item.split == split
        assert looked_up(item.scene, item.question.question) == item.question.answer


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_held_out_questions_are_about_pairs_that_training_never_shows(kind):
    for item in quiz(kind, "heldout", count=60):
        present = {(o.colour, o.shape) for o in item.scene.objects}
        assert present & HELD_OUT_PAIRS
        if kind != "exists" or item.question.answer == "yes":
            assert item.question.held_out
    for item in quiz(kind, "seen", count=60):
        assert not item.question.held_out and not {(o.colour, o.shape) for o in item.scene.objects} & HELD_OUT_PAIRS


@pytest.mark.parametrize("split", SPLITS)
def test_existence_is_balanced_in_each_set_of_pope(split):
    items = quiz("exists", split, count=60)
    assert Counter((item.negatives, item.question.answer) for item in items) == {
        (negatives, answer): 10 for negatives in NEGATIVES for answer in ("yes", "no")
    }


def test_adversarial_questions_share_a_word_with_the_picture_and_popular_ones_name_a_training_pair():
    for split in SPLITS:
        for item in quiz("exists", split, count=120):
            if item.question.answer == "yes":
                continue
            colour, shape = item.question.question.removeprefix("is there a ").removesuffix("?").split()
            if item.negatives == "adversarial":
                assert any(o.colour == colour or o.shape == shape for o in item.scene.objects)
            if item.negatives == "popular" or split == "seen":
                assert (colour, shape) not in HELD_OUT_PAIRS


def test_training_never_asks_for_a_held_out_pair():
    asked = [item for index in range(300) for item in questions(SceneSampler(0, "train")[index])]
    assert not any(item.held_out for item in asked)


def test_answers_can_be_seen_in_the_picture():
    for item in quiz("colour", "heldout", count=20):
        objects = read_objects(draw(item.scene, 32))
        assert item.question.answer in {found.colour for found in objects}


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown question kind 'taste'"):
        quiz("taste", count=1)

import numpy as np
import pytest

from tokenflow.data.captions import HELD_OUT_KINDS, PROMPT_KINDS, caption, captions, prompts
from tokenflow.data.questions import QUESTION_KINDS, questions
from tokenflow.data.shapes import COLOURS, HELD_OUT_PAIRS, SHAPES, Scene, SceneSampler, draw

MANY = 1500


def pairs(scene):
    return {(item.colour, item.shape) for item in scene.objects}


def test_a_scene_is_a_function_of_seed_split_and_index():
    assert SceneSampler(3, "train")[7] == SceneSampler(3, "train")[7]
    others = [SceneSampler(4, "train")[7], SceneSampler(3, "seen")[7], SceneSampler(3, "train")[8]]
    assert SceneSampler(3, "train")[7] not in others


@pytest.mark.parametrize("split", ["train", "seen"])
def test_training_and_seen_scenes_have_no_held_out_pair(split):
    sampler = SceneSampler(0, split)
    assert not any(pairs(sampler[index]) & HELD_OUT_PAIRS for index in range(MANY))


def test_every_heldout_scene_has_a_held_out_pair_and_all_of_them_occur():
    found = [pairs(SceneSampler(0, "heldout")[index]) & HELD_OUT_PAIRS for index in range(MANY)]
    assert all(found)
    assert set.union(*found) == HELD_OUT_PAIRS


def test_training_covers_every_other_pair_and_one_to_three_objects():
    scenes = [SceneSampler(0, "train")[index] for index in range(MANY)]
    assert set.union(*map(pairs, scenes)) == {(c, s) for c in COLOURS for s in SHAPES} - HELD_OUT_PAIRS
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}


def test_held_out_pairs_use_every_shape_once():
    assert sorted(shape for _, shape in HELD_OUT_PAIRS) == sorted(SHAPES)


def test_objects_neither_touch_nor_leave_the_picture():
    for index in range(MANY):
        items = SceneSampler(1, "train")[index].objects
        for number, item in enumerate(items):
            assert min(item.x, item.y, 1 - item.x, 1 - item.y) > 1.1 * item.radius
            for other in items[:number]:
                assert max(abs(item.x - other.x), abs(item.y - other.y)) > item.radius + other.radius + 0.06


def test_drawing_is_deterministic_and_the_same_at_every_size():
    scene = SceneSampler(0, "train")[5]
    small, large = draw(scene, 32), draw(scene, 64)
    assert small.dtype == np.uint8 and small.shape == (32, 32, 3) and large.shape == (64, 64, 3)
    assert np.array_equal(small, draw(scene, 32))
    halved = large.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 1.0


def test_a_scene_survives_json():
    import json

    scene = SceneSampler(0, "heldout")[11]
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_captions_name_every_object_and_vary():
    scene = next(s for s in (SceneSampler(0, "train")[i] for i in range(50)) if s.kind == "pair")
    assert len({caption(scene, variant=variant) for variant in range(30)}) >= 6
    assert all(len(claim.objects) == 2 for claim in captions(scene))
    words = {word for index in range(300) for word in caption(SceneSampler(0, "train")[index]).split()}
    assert {"two", "three", "left", "right", "above", "below", "crosses", "stars"} <= words


def test_captions_name_objects_from_the_top_left_unless_they_say_where_those_are():
    for index in range(40):
        scene = SceneSampler(0, "train").scene(index, kind="pair" if index % 2 else "triple")
        shapes = [item.shape for item in sorted(scene.objects, key=lambda item: item.x + item.y)]
        texts = [caption(scene, variant=variant) for variant in range(20)]
        plain = [text for text in texts if " and " in text]
        assert plain
        for text in plain:
            assert sorted(shapes, key=text.index) == shapes, text
        told = [text for text in texts if text not in plain]
        assert {shapes.index(min(shapes, key=text.index)) for text in told} == ({0, 1} if index % 2 else set()), told
        free = [caption(scene, variant=variant, reading_order=False) for variant in range(40)]
        assert scene.kind != "pair" or any(sorted(shapes, key=text.index) != shapes for text in free if " and " in text)


def test_questions_cover_every_kind_and_existence_is_balanced():
    found = [item for index in range(600) for item in questions(SceneSampler(0, "train")[index])]
    assert {item.kind for item in found} == set(QUESTION_KINDS)
    answers = [item.answer for item in found if item.kind == "exists"]
    assert answers.count("yes") == answers.count("no")


def test_a_question_has_one_answer():
    for index in range(600):
        asked = {}
        for item in questions(SceneSampler(0, "heldout")[index]):
            assert asked.setdefault(item.question, item.answer) == item.answer


def test_training_questions_never_mention_a_held_out_pair():
    found = [item for index in range(600) for item in questions(SceneSampler(0, "train")[index])]
    assert not any(item.held_out for item in found)
    assert any(item.held_out for index in range(20) for item in questions(SceneSampler(0, "heldout")[index]))


@pytest.fixture(scope="module")
def known():
    return {claim.text for index in range(6000) for claim in captions(SceneSampler(0, "train")[index])}


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_prompts_are_worded_as_training_captions(kind, known):
    texts = [prompt.text for prompt in prompts(kind, "seen", count=40)]
    # positions and attributions have hundreds of wordings, few of which 6000 scenes lack
    assert sum(text in known for text in texts) >= 38


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_heldout_prompts_all_name_a_held_out_pair_and_seen_ones_none(kind):
    held_out = prompts(kind, "heldout", count=30)
    assert len(held_out) == (30 if kind in HELD_OUT_KINDS else 0)
    assert all(prompt.held_out for prompt in held_out)
    seen = prompts(kind, "seen", count=30)
    assert len(seen) == 30 and not any(prompt.held_out for prompt in seen)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="unknown split 'test'"):
        SceneSampler(0, "test")
    with pytest.raises(ValueError, match="unknown prompt kind"):
        prompts("colour", "seen", count=1)
    with pytest.raises(ValueError, match="expected at least 16"):
        draw(SceneSampler(0)[0], 8)

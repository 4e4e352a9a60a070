"""GenEval's rules on detections made by hand."""

import pytest

from tokenflow.evaluation.geneval_score import Detection, confident, directions, judge, summarise


def found(label, *, box=(0, 0, 10, 10), confidence=0.95, colour="red") -> Detection:
    detection = Detection(label=label, confidence=confidence, box=box)
    COLOUR_OF[id(detection)] = (detection, colour)
    return detection


COLOUR_OF: dict[int, tuple[Detection, str]] = {}


def named(objects):
    return [COLOUR_OF[id(item)][1] for item in objects]


def verdict(metadata, *detections):
    return judge(metadata, detections, name_colours=named)


def one(label, *, count=1, tag="single_object", **more):
    return {"tag": tag, "prompt": "", "include": [{"class": label, "count": count, **more}]}


def test_an_object_must_be_there_with_more_than_the_least_confidence():
    assert verdict(one("dog"), found("dog", confidence=0.31)).correct
    assert not verdict(one("dog"), found("dog", confidence=0.3)).correct
    assert not verdict(one("dog"), found("cat")).correct
    assert verdict(one("dog")).reasons == ("expected 1 dog, found 0",)


def test_others_may_be_there_unless_excluded():
    assert verdict(one("dog"), found("dog"), found("dog"), found("cat")).correct


def test_counting_wants_exactly_so_many_sure_ones():
    metadata = one("clock", count=2, tag="counting") | {"exclude": [{"class": "clock", "count": 3}]}
    sure, unsure = [found("clock") for _ in range(3)], found("clock", confidence=0.9)
    assert verdict(metadata, *sure[:2], unsure).correct
    assert not verdict(metadata, sure[0], unsure).correct
    assert verdict(metadata, *sure).reasons == ("expected fewer than 3 clock, found 3",)


def test_two_objects_must_both_be_there():
    metadata = {"tag": "two_object", "prompt": "", "include": [{"class": c, "count": 1} for c in ("bench", "cow")]}
    assert verdict(metadata, found("cow"), found("bench")).correct
    assert not verdict(metadata, found("cow"), found("cow")).correct


def test_the_colour_is_that_of_the_surest_object():
    metadata = one("car", tag="colors", color="blue")
    sure, other = found("car", confidence=0.9, colour="blue"), found("car", confidence=0.5, colour="red")
    assert verdict(metadata, other, sure).correct
    sure, other = found("car", confidence=0.9, colour="red"), found("car", confidence=0.5, colour="blue")
    assert verdict(metadata, other, sure).reasons == ("expected 1 blue car, found red",)


def test_each_object_has_its_own_colour():
    include = [{"class": "apple", "count": 1, "color": "black"}, {"class": "cup", "count": 1, "color": "green"}]
    metadata = {"tag": "color_attr", "prompt": "", "include": include}
    assert verdict(metadata, found("apple", colour="black"), found("cup", colour="green")).correct
    swapped = verdict(metadata, found("apple", colour="green"), found("cup", colour="black"))
    assert len(swapped.reasons) == 2


def position(where):
    include = [{"class": "bear", "count": 1}, {"class": "dog", "count": 1, "position": [where, 0]}]
    return {"tag": "position", "prompt": "", "include": include}


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((60, 0, 70, 10), {"right of"}),
        ((-60, 0, -50, 10), {"left of"}),
        ((0, 60, 10, 70), {"below"}),
        ((0, -60, 10, -50), {"above"}),
        ((60, 60, 70, 70), {"right of", "below"}),
        ((1, 1, 11, 11), set()),
        ((0, 0, 10, 10), set()),
        # 45 to the right, 20 down: less than half of the offset's length is vertical.
        ((45, 20, 55, 30), {"right of"}),
    ],
)
def test_directions_of_a_box_relative_to_one_at_the_origin(box, where):
    dog, bear = found("dog", box=box), found("bear")
    assert directions(dog, bear) == where
    for name in ("left of", "right of", "above", "below"):
        assert verdict(position(name), bear, dog).correct == (name in where)


def test_objects_that_overlap_for_more_than_a_tenth_of_their_sizes_have_no_direction():
    # Centres differ by 4, a tenth of the widths together is 4.
    assert directions(found("a", box=(4, 0, 24, 20)), found("b", box=(0, 0, 20, 20))) == set()
    assert directions(found("a", box=(10, 0, 30, 20)), found("b", box=(0, 0, 20, 20))) == {"right of"}


def test_a_missing_target_makes_a_position_wrong():
    assert verdict(position("above"), found("dog")).reasons == (
        "expected 1 bear, found 0",
        "nothing for dog to be above",
    )


def test_at_most_sixteen_of_a_class_are_looked_at_the_surest_first():
    many = [found("dog", confidence=0.4 + number / 100) for number in range(20)]
    kept = confident(many, tag="single_object")["dog"]
    assert (
        len(kept) == 16
        and [item.confidence for item in kept] == sorted((m.confidence for m in many), reverse=True)[:16]
    )


def test_overall_is_the_mean_over_tags_not_over_pictures():
    rows = [("colors", "0", True), ("colors", "0", False), ("colors", "1", True), ("counting", "2", False)]
    scores = summarise([*rows, ("counting", "3", False)])
    assert scores["colors"].value == 0.75 and scores["counting"].value == 0
    assert scores["overall"].value == 0.375
    assert scores["colors"].error == pytest.approx(0.25)

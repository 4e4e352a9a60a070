import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflow.evaluation.charts import (
    HEIGHT,
    WIDTH,
    Series,
    bar_chart,
    line_chart,
    linear_axis,
    nice_ticks,
    number,
    rank_chart,
    smooth_values,
    thin,
)

finite = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)


def coordinates(markup: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(markup)
    found = []
    for element in root.iter():
        tag = element.tag.rsplit("}", 1)[-1]
        if tag == "circle":
            found.append((float(element.get("cx")), float(element.get("cy"))))
        if tag == "path":
            numbers = [float(part.strip("MLZ")) for part in element.get("d").split() if part.strip("MLZ")]
            found += list(zip(numbers[::2], numbers[1::2], strict=True))
    return found


@settings(max_examples=60)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=40), st.booleans())
def test_any_line_is_well_formed_and_inside_the_picture(values, log):
    series = Series(name="a<b & c", x=list(range(len(values))), y=values)
    for smooth in (0.0, 0.9):
        markup = line_chart([series], title="x > y", x_label="step", log=log, smooth=smooth)
        assert all(-1 <= x <= WIDTH + 1 and -1 <= y <= HEIGHT + 1 for x, y in coordinates(markup))


@settings(max_examples=60)
@given(st.lists(finite, min_size=1, max_size=30))
def test_an_axis_holds_its_values_and_has_ticks_inside(values):
    axis = linear_axis(values, 0, 100)
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in values)
    assert len(axis.ticks) >= 2


@pytest.mark.parametrize("values", [[5e-324], [0.0], [-1e-310, 1e-310], [1e15, 1e15 + 1]])
def test_an_axis_of_almost_equal_values_has_a_width(values):
    axis = linear_axis(values, 0, 100)
    assert axis.low < axis.high and len(axis.ticks) >= 2


def test_ticks_are_round():
    assert nice_ticks(0, 1) == pytest.approx((0, 0.25, 0.5, 0.75, 1.0))
    assert nice_ticks(0, 1500, 7) == pytest.approx((0, 250, 500, 750, 1000, 1250, 1500))


def test_numbers_are_short():
    assert [number(value) for value in (27.5132, 0.9312, 600, 1234567, 0.00001234, -2.5, 1.0, math.nan, 99.96)] == [
        "27.51", "0.931", "600", "1 234 567", "1.23e−05", "−2.5", "1", "not a number", "99.96",
    ]  # fmt: skip


def test_smoothing_keeps_a_constant_and_does_not_lag():
    assert smooth_values([2.0] * 9, 0.9) == pytest.approx([2.0] * 9)
    ramp = [float(value) for value in range(101)]
    assert smooth_values(ramp, 0.9)[50] == pytest.approx(50)
    gap = smooth_values([1.0, math.nan, 1.0], 0.5)
    assert math.isnan(gap[1]) and gap[0] == gap[2] == 1.0


def test_thinning_keeps_spikes_and_ends():
    y = [0.0] * 5000
    y[1234] = 9.0
    points = thin(range(5000), y)
    assert len(points) <= 402
    assert (1234, 9.0) in points and points[0][0] == 0 and points[-1][0] == 4999


def test_a_gap_interrupts_the_line():
    markup = line_chart([Series(name="a", x=[0, 1, 2, 3, 4], y=[1, 2, math.nan, 2, 1])], title="t", x_label="step")
    path = next(e for e in ElementTree.fromstring(markup).iter() if e.tag.endswith("path"))
    assert path.get("d").count("M") == 2


def test_a_value_without_neighbours_is_seen():
    markup = line_chart([Series(name="a", x=[0, 1, 2, 3], y=[1, math.nan, 2, 3])], title="t", x_label="step")
    dots = [e.get("class") for e in ElementTree.fromstring(markup).iter() if e.tag.endswith("circle")]
    assert sorted(dots) == ["dot s1", "dot s1", "dot s1 alone"]


def test_charts_say_what_they_show_without_eyes():
    assert 'aria-label="Loss: total ends at 2"' in line_chart(
        [Series(name="total", x=[0, 1], y=[3, 2])], title="Loss", x_label="step"
    )
    assert "usage: 1 50%, 2 100%" in bar_chart(["1", "2"], [0.5, 1.0], title="usage", percent=True)
    assert "2 of 3 codes used" in rank_chart([5, 0, 1], title="codes")


def test_nothing_to_show_is_said():
    assert "no values yet" in line_chart([Series(name="a", x=[], y=[])], title="t", x_label="step")
    assert "no values yet" in bar_chart([], [], title="t")
    assert "no codes counted" in rank_chart([0, 0], title="t")

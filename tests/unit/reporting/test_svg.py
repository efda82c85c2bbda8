"""The drawings' elements: escaped text, round ticks, marks that differ in shape."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

from hypothesis import assume, given
from hypothesis import strategies as st

from kifuse.reporting.svg import Scale, drawing, element, fit, log_ticks, marker, round_up, text, ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


VISIBLE = st.text(st.characters(categories=["L", "N", "P", "S"]))


def parse(markup: str) -> ElementTree.Element:
    """Read a drawing that was made here."""
    return ElementTree.fromstring(markup)  # noqa: S314


@given(VISIBLE)
def test_text_comes_back_as_it_was_and_never_as_markup(content: str):
    parsed = parse(text(1, 2, content))
    assert len(parsed) == 0
    assert (parsed.text or "") == content


@given(st.text(st.characters(exclude_categories=[])))
def test_attributes_cannot_be_left(content: str):
    assert set(parse(element("rect", data_tip=content)).attrib) == {"data-tip"}


@given(FINITE, FINITE, st.integers(2, 12))
def test_ticks_are_round_and_inside(low: float, high: float, most: int):
    assume(high - low > 1e-3)
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    slack = 1e-6 * (high - low)
    assert all(low - slack <= value <= high + slack for value in found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)


def test_ticks_of_a_count_are_whole():
    assert ticks(0, 3, 8, whole=True) == [0, 1, 2, 3]
    assert ticks(0, 100, 5) == [0, 50, 100]


@given(st.floats(1e-4, 1e3), st.floats(1.5, 1e4))
def test_logarithmic_ticks_lie_inside(low: float, ratio: float):
    high = low * ratio
    assert all(low * 0.99 <= value <= high * 1.01 for value in log_ticks(low, high))
    if ratio >= 10:
        assert log_ticks(low, high)


@given(st.floats(1e-9, 1e9))
def test_an_axis_ends_a_little_above_its_largest_value(value: float):
    assert value * 0.999 <= round_up(value) <= 2.01 * value


def test_a_scale_puts_values_where_they_belong():
    assert [Scale(0, 10, 100, 0)(v) for v in (0, 5, 10)] == [100, 50, 0]
    assert Scale(1, 100, 0, 10, log=True)(10) == 5
    assert Scale(4, 4, 0, 10)(4) == 5


def test_marks_of_six_groups_differ_in_shape():
    shapes = set()
    for group in range(6):
        parsed = parse(marker(group, 0, 0))
        shapes.add(parsed.get("d", parsed.tag))
    assert len(shapes) == 6


def test_a_drawing_has_a_name_for_those_who_do_not_see_it():
    parsed = parse(drawing(10, 20, 'Scores of "a" & b'))
    assert parsed.get("role") == "img"
    assert parsed.get("aria-label") == 'Scores of "a" & b'


def test_names_are_cut_to_the_room_there_is():
    assert fit("a very long name of a task", 40).endswith("…")

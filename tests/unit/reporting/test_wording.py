"""Numbers, times and names as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kifuse.reporting.wording import clean, clock, compact, count, duration, listed, number, plain, shorten


@given(st.text(st.characters(exclude_categories=[])))
def test_a_cleaned_text_can_be_written_and_keeps_what_it_says(text: str):
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\x00" not in cleaned
    assert "\u202e" not in cleaned
    harmless = "".join(c for c in text if c.isalnum())
    assert "".join(c for c in cleaned if c.isalnum()) == harmless


def test_two_halves_of_a_pair_become_the_sign_they_are():
    assert clean("\ud83d\ude00") == "\U0001f600"


@given(st.text(), st.integers(2, 50))
def test_a_shortened_text_is_one_line_of_the_length_asked_for(text: str, most: int):
    short = shorten(text, most)
    assert len(short) <= most
    assert "\n" not in short


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "\u2013"), (-0.04, "0.0"), (-3.25, "\u22123.2"), (66.66, "66.7"), (100.0, "100.0")],
)
def test_numbers_have_one_decimal_and_a_true_minus(value: float | None, shown: str):
    assert number(value) == shown


def test_a_gain_shows_its_sign():
    assert number(1.25, sign=True) == "+1.2"
    assert number(0.04, sign=True) == "0.0"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1234567.0, "1.23e+06"), (0.000012, "1.20e\u221205"), (12.34, "12.3"), (2500.0, "2500")],
)
def test_numbers_of_any_size_stay_short(value: float, shown: str):
    assert compact(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown", "short"),
    [
        (4.21, "4.2 s", ("4.2", "s")),
        (546, "9 min 6 s", ("9:06", "min")),
        (3600 * 3 + 720, "3 h 12 min", ("3:12", "h")),
        (59.97, "60.0 s", ("60.0", "s")),
    ],
)
def test_times(seconds: float, shown: str, short: tuple[str, str]):
    assert duration(seconds) == shown
    assert clock(seconds) == short


def test_lists_and_counts_and_settings():
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert count(1, "task") == "1 task"
    assert count(1500, "loss", "losses") == "1,500 losses"
    assert [plain(v) for v in (None, True, [1, None], 0.5)] == ["none", "true", "1, none", "0.5"]

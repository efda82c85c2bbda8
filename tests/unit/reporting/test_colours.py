"""The colours: text on them is legible, and colour-blind people can tell them apart."""

from __future__ import annotations

from itertools import combinations

import pytest

from kifuse.reporting.colours import DARK, LIGHT, STEPS, Theme, contrast, ramp, step_of, text_on

THEMES = [LIGHT, DARK]

# Severity 1.0 of Machado, Oliveira and Fernandes (2009), on linear RGB.
SIGHT = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "no green": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "no blue": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
WHITE = (0.95047, 1.0, 1.08883)


def seen(colour: str, sight: str) -> tuple[float, float, float]:
    """CIE L*a*b* of a colour as somebody sees it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    r, g, b = (
        min(1.0, max(0.0, sum(m * v for m, v in zip(row, linear, strict=True)))) for row in SIGHT[sight]
    )
    xyz = (
        0.4124564 * r + 0.3575761 * g + 0.1804375 * b,
        0.2126729 * r + 0.7151522 * g + 0.0721750 * b,
        0.0193339 * r + 0.1191920 * g + 0.9503041 * b,
    )
    f = [
        v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116
        for v in (x / w for x, w in zip(xyz, WHITE, strict=True))
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def distance(one: str, other: str, sight: str) -> float:
    """How unlike two colours look; about 2 can just be seen."""
    return sum((a - b) ** 2 for a, b in zip(seen(one, sight), seen(other, sight), strict=True)) ** 0.5


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_methods_and_parts_can_be_told_apart(theme: Theme, sight: str):
    for family in (theme.groups, theme.parts):
        assert min(distance(a, b, sight) for a, b in combinations(family, 2)) > 12


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_gain_and_loss_can_be_told_apart(theme: Theme, sight: str):
    steps = theme.steps(diverging=True)
    for far in range(4, STEPS // 2 + 1):
        assert distance(steps[STEPS // 2 - far], steps[STEPS // 2 + far], sight) > 12


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_more_is_always_further_from_the_paper(theme: Theme):
    lightness = [seen(colour, "full")[0] for colour in theme.steps()]
    ordered = sorted(lightness, reverse=theme is LIGHT)
    assert lightness == ordered
    assert abs(lightness[0] - lightness[-1]) > 60


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(theme: Theme):
    for text in (theme.ink, theme.muted, theme.accent, theme.right, theme.wrong):
        assert contrast(text, theme.paper) >= 4.5
    assert contrast(theme.muted, theme.raised) >= 4.5
    for colour in (*theme.steps(), *theme.steps(diverging=True), *theme.parts):
        assert contrast(text_on(colour), colour) >= 4.5
    for mark in (*theme.groups, theme.axis):
        assert contrast(mark, theme.paper) >= 3


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_a_ramp_begins_and_ends_with_its_stops():
    colours = ramp(["#102030", "#aabbcc"], 5)
    assert (colours[0], colours[-1], len(colours)) == ("#102030", "#aabbcc", 5)


def test_values_beyond_the_ends_have_the_colours_of_the_ends():
    assert [step_of(v, 0, 100) for v in (-5, 0, 50, 100, 200)] == [0, 0, STEPS // 2, STEPS - 1, STEPS - 1]
    assert step_of(3, 3, 3) == 0

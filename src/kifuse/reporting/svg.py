"""Make small vector graphics for the page: elements with escaped text, scales, axes. They hold no styles.

The style sheet says how things look. So the same drawing works in light and dark, in print and in files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kifuse.reporting.wording import MINUS, clean, shorten

CHARACTER = 6.6
"""The mean width of a character of the drawings' text, which is 12 units high."""


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Make one element.

    Args:
        tag: The name of the element.
        children: Text, which is escaped, or elements.
        attributes: An underscore in a name becomes a hyphen, and one at its end is dropped. An attribute
            that is None is left out.

    Returns:
        The element; numbers have at most two decimals.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(child if isinstance(child, Markup) else escape(clean(child)) for child in children)
    return Markup(f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>")  # noqa: S704


def drawing(width: float, height: float, label: str, *children: object, kind: str = "") -> Markup:
    """Make a whole picture.

    Args:
        width: Units across; one unit is a pixel at natural size.
        height: Units down.
        label: What a screen reader reads out instead.
        children: The elements in the picture.
        kind: More CSS classes.
    """
    return element(
        "svg",
        *children,
        class_=f"drawing {kind}".strip(),
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: object, kind: str = "", anchor: str | None = None) -> Markup:
    """Make an element with text whose baseline is at y; `anchor` is `middle` or `end`."""
    return element("text", content, x=x, y=y, class_=kind or None, text_anchor=anchor)


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to places between two ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Choose round values between two ends.

    Args:
        low: The lower end.
        high: The upper end.
        most: The highest number of ticks.
        whole: Whether only whole numbers may be used.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten.
    """
    if high <= low:
        return [low]
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * factor for factor in (1, 2, 5, 10, 20)]
    for step in steps:
        if whole and step < 1:
            continue
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(i * step, 12) for i in range(first, last + 1)]
    return [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """Choose values between two ends for a logarithmic axis: 1, 2 and 5 times powers of ten, or fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(found) <= 7:
            break
    return found


def round_up(value: float) -> float:
    """Return the next 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten; 1 for zero."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((f * power for f in (1, 1.5, 2, 3, 4, 5, 6, 8) if f * power >= value * 0.9999), 10 * power)


def axes(
    x: Scale, y: Scale, *, x_title: str, y_title: str, x_ticks: Sequence[float], y_ticks: Sequence[float]
) -> list[Markup]:
    """Draw lines at the ticks of y, ticks at x, and the titles of both axes.

    Args:
        x: The scale of the horizontal axis.
        y: The scale of the vertical axis.
        x_title: The title below the horizontal axis.
        y_title: The title above the vertical axis.
        x_ticks: Values with a number.
        y_ticks: Values with a number and a line.
    """
    made = []
    for value in y_ticks:
        place = y(value)
        made.append(element("line", x1=x.start, x2=x.end, y1=place, y2=place, class_="grid"))
        made.append(text(x.start - 6, place + 4, tick_text(value), "tick", "end"))
    made.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    for value in x_ticks:
        place = x(value)
        made.append(element("line", x1=place, x2=place, y1=y.start, y2=y.start + 4, class_="axis"))
        made.append(text(place, y.start + 17, tick_text(value), "tick", "middle"))
    made.append(text((x.start + x.end) / 2, y.start + 34, x_title, "title", "middle"))
    made.append(text(0, y.end - 14, y_title, "title"))
    return made


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Join points with straight lines."""
    steps = "L".join(f"{_plain(x)} {_plain(y)}" for x, y in points)
    return element("path", d=f"M{steps}", class_=kind)


def marker(index: int, x: float, y: float, *, tip: str | None = None, size: float = 4.0) -> Markup:
    """Draw the mark of a group. Each group has its own shape, since some people do not see the colours."""
    s = size
    shapes = [
        "",
        f"M{-s} {-s}H{s}V{s}H{-s}Z",
        f"M0 {-1.3 * s}L{1.25 * s} {s}H{-1.25 * s}Z",
        f"M0 {-1.4 * s}L{1.4 * s} 0L0 {1.4 * s}L{-1.4 * s} 0Z",
        f"M0 {1.3 * s}L{1.25 * s} {-s}H{-1.25 * s}Z",
        f"M{-s} {-s}L{s} {s}M{-s} {s}L{s} {-s}",
    ]
    group = index % len(shapes)
    kind = f"mark g{group}{' open' if group == 5 else ''}"
    if not shapes[group]:
        return element("circle", cx=x, cy=y, r=s, class_=kind, data_tip=tip)
    place = f"translate({_plain(x)} {_plain(y)})"
    return element("path", d=shapes[group], transform=place, class_=kind, data_tip=tip)


def fit(name: object, width: float) -> str:
    """Cut a name so that it fits into a width, in units."""
    return shorten(name, max(int(width / CHARACTER), 1))


def tick_text(value: float) -> str:
    """Write the number at a tick of an axis, as short as it can be."""
    return f"{value:g}".replace("-", MINUS)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(value)

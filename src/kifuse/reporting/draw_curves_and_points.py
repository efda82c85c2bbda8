"""Drawings of curves, timelines, spreads and points in the plane."""

from __future__ import annotations

from markupsafe import Markup

from kifuse.reporting.plots import Cloud, CurvePanel, Curves, Mean, Strips, Timeline
from kifuse.reporting.svg import (
    CHARACTER,
    Scale,
    axes,
    drawing,
    element,
    fit,
    log_ticks,
    marker,
    path,
    round_up,
    text,
    tick_text,
    ticks,
)
from kifuse.reporting.wording import compact, number

_DOTTED = 24
"""A curve with at most this many points has a mark at each of them."""


def curve_panel(plot: Curves, panel: CurvePanel, *, narrow: bool = False) -> Markup:
    """Draw one panel of curves; the page shows its title beside it.

    Args:
        plot: The curves.
        panel: One of their panels.
        narrow: Whether a wide plot is drawn for a narrow page.
    """
    width, height = (216.0, 206.0) if plot.dots else (216.0, 168.0)
    kind = ""
    if plot.wide:
        width, height = (430.0, 280.0) if narrow else (760.0, 320.0)
        kind = "narrow" if narrow else "wide"
    x = Scale(*plot.x_range, 34, width - 10 - 14 * plot.log, plot.log)
    y = Scale(*plot.y_range, height - 40, 26)
    made = axes(
        x,
        y,
        x_title=plot.x_title,
        y_title=plot.y_title,
        x_ticks=log_ticks(*plot.x_range) if plot.log else ticks(*plot.x_range, 8, whole=plot.whole),
        y_ticks=ticks(*plot.y_range, 5),
    )
    grouped = plot.dots or several(panel)
    for line in sorted(panel.lines, key=lambda line: not line.faint):
        places = [(x(a), y(b)) for a, b in line.points]
        if not plot.dots and len(places) > 1:
            colour = f"curve g{line.group % 6}" if grouped else "curve"
            made.append(path(places, "curve faint" if line.faint else colour))
        if line.faint:
            continue
        for (a, b), (px, py) in zip(line.points, places, strict=True) if len(places) <= _DOTTED else ():
            tip = f"{line.label}: {compact(b)} at {compact(a)} {plot.x_title}"
            if grouped:
                made.append(marker(line.group, px, py, tip=tip, size=3.0 if plot.dots else 4.0))
            else:
                made.append(element("circle", cx=px, cy=py, r=3.2, class_="dot", data_tip=tip))
    label = f"{plot.title}: {panel.title}. {panel.remark}".strip()
    return drawing(width, height, label, *made, kind=kind)


def several(panel: CurvePanel) -> bool:
    """Return whether a panel has more than one curve, not counting those for comparison only."""
    return sum(not line.faint for line in panel.lines) > 1


def timeline(plot: Timeline, *, narrow: bool) -> Markup:
    """Draw a timeline, for a wide page or a narrow one."""
    width, height = (430.0, 250.0) if narrow else (1000.0, 280.0)
    end = max((last for _, _, last in plot.spans), default=1.0)
    values = [v for line in plot.lines for _, v in line.points] or [1.0]
    bottom, top = (min(values) / 1.1, max(values) * 1.1) if plot.log else (0.0, round_up(max(values)))
    x, y = Scale(0, end, 46, width - 10), Scale(bottom, top, height - 44, 46, plot.log)
    made = []
    for i, (name, first, last) in enumerate(plot.spans):
        left, size = x(first), x(last) - x(first)
        if i % 2 == 0:
            made.append(element("rect", x=left, y=28, width=size, height=y.start - 28, class_="band"))
        shown = fit(name, size - 6) if size > 60 else str(i + 1)
        made.append(text(left + size / 2, 42, shown, "tick", "middle"))
    made += axes(
        x,
        y,
        x_title=plot.x_title,
        y_title="",
        x_ticks=ticks(0, end, 5 if narrow else 10, whole=True),
        y_ticks=log_ticks(bottom, top) if plot.log else ticks(0, top, 5),
    )
    y_title = f"{plot.y_title}, logarithmic" if plot.log else plot.y_title
    made.append(text(0, 16, y_title, "title"))
    for line in plot.lines:
        made.append(path([(x(a), y(b)) for a, b in line.points], "curve"))
        for a, b in line.points if len(line.points) <= 60 else ():
            tip = f"{line.label}, step {compact(a)}: {compact(b)}"
            made.append(element("circle", cx=x(a), cy=y(b), r=2.2, class_="dot", data_tip=tip))
    if plot.marks:
        ruled = "".join(f"M{x(step):.2f} {y.start - 9:g}v9" for step in plot.marks)
        made.append(element("path", d=ruled, class_="rug"))
    tasks = f"{len(plot.spans)} task{'s' if len(plot.spans) != 1 else ''}"
    marks = f" {len(plot.marks)} {plot.mark}s are marked." if plot.marks else ""
    label = f"{plot.title} over {compact(end)} steps of {tasks}.{marks}"
    return drawing(width, height, label, *made, kind="narrow" if narrow else "wide")


def strip_panel(plot: Strips, index: int) -> Markup:
    """Draw one quantity of several methods: the mean, its deviation, and the single runs."""
    title, means = plot.panels[index]
    left = min(max(len(row) for row in plot.rows) * CHARACTER + 8, 170.0)
    width, row, top = 460.0, 34.0, 6.0
    low, high = value_range([mean for mean in means if mean is not None])
    x = Scale(low, high, left + 8, width - 52)
    bottom = top + row * len(plot.rows)
    made: list[Markup] = []
    for value in ticks(low, high, 6):
        place = x(value)
        kind = "axis" if value == 0 else "grid"
        made.append(element("line", x1=place, x2=place, y1=top, y2=bottom, class_=kind))
        made.append(text(place, bottom + 16, tick_text(value), "tick", "middle"))
    for r, (name, mean) in enumerate(zip(plot.rows, means, strict=True)):
        y = top + row * (r + 0.5)
        made.append(text(left, y + 4, fit(name, left), "name", "end"))
        if mean is None:
            made.append(text(left + 14, y + 4, "none", "tick"))
            continue
        made += _whisker(x(mean.value), y, mean, x)
        for value in mean.values if len(mean.values) > 1 else ():
            tip = f"{name}, one run: {number(value)}"
            made.append(element("circle", cx=x(value), cy=y, r=3, class_="single", data_tip=tip))
        made.append(marker(r, x(mean.value), y, tip=f"{name}: {mean}", size=4.6))
        made.append(text(width, y + 4, number(mean.value), "name", "end"))
    made.append(text((x.start + x.end) / 2, bottom + 34, title, "title", "middle"))
    said = ", ".join(f"{n}: {'none' if m is None else m}" for n, m in zip(plot.rows, means, strict=True))
    return drawing(width, bottom + 40, f"{title}. {said}.", *made)


def cloud(plot: Cloud, *, narrow: bool) -> Markup:
    """Draw labelled points, for a wide page or a narrow one."""
    width, height = (430.0, 330.0) if narrow else (760.0, 380.0)
    x_low, x_high = value_range([mean for _, _, mean, _ in plot.points], floor=0.0)
    y_low, y_high = value_range([mean for _, _, _, mean in plot.points])
    x, y = Scale(x_low, x_high, 46, width - 16), Scale(y_low, y_high, height - 44, 30)
    made = axes(
        x,
        y,
        x_title=plot.x_title,
        y_title=plot.y_title,
        x_ticks=ticks(x_low, x_high, 5 if narrow else 8),
        y_ticks=ticks(y_low, y_high, 6),
    )
    taken: list[tuple[float, float, float]] = []
    for group, name, across, up in plot.points:
        px, py = x(across.value), y(up.value)
        low, high = _around(across)
        made.append(path([(x(low), py), (x(high), py)], f"whisker g{group % 6}"))
        low, high = _around(up)
        made.append(path([(px, y(low)), (px, y(high))], f"whisker g{group % 6}"))
        made.append(marker(group, px, py, tip=f"{name}: {across}, {up}", size=5.5))
        made.append(_label(name, px, py, width, taken))
    label = f"{plot.title}. " + ", ".join(f"{n}: {a}, {b}" for _, n, a, b in plot.points) + "."
    return drawing(width, height, label, *made, kind="narrow" if narrow else "wide")


def _label(name: str, x: float, y: float, width: float, taken: list[tuple[float, float, float]]) -> Markup:
    """Write a name beside its point, at a place that no other name takes."""
    name = fit(name, width * 0.6)
    size = len(name) * CHARACTER
    start = x + 9 if x + 9 + size < width else x - 9 - size
    # keep off the lines of the spread: try above the point, then below it, each time a little further away
    for shift in (-12, 18, -28, 34, -44, 50):
        place = y + shift
        if all(abs(place - v) > 14 or start > b or start + size < a for a, b, v in taken):
            break
    else:
        place = y - 12
    taken.append((start, start + size, place))
    return text(start, place, name, "name")


def _whisker(place: float, y: float, mean: Mean, x: Scale) -> list[Markup]:
    low, high = _around(mean)
    if low == high:
        return []
    return [path([(x(low), y), (x(high), y)], "spread")]


def _around(mean: Mean) -> tuple[float, float]:
    deviation = mean.deviation or 0.0
    return mean.value - deviation, mean.value + deviation


def value_range(means: list[Mean], floor: float | None = None) -> tuple[float, float]:
    """Choose round ends of an axis with room for every value and deviation."""
    values = [v for mean in means for v in (*_around(mean), *mean.values)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if floor is not None:
        low = floor
    elif low >= 0 and low < 0.5 * high:
        low = 0.0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    found = ticks(low - (0 if low in (0.0, floor) else room), high + room, 6)
    step = found[1] - found[0] if len(found) > 1 else room
    first = found[0] if found[0] <= low else found[0] - step
    last = found[-1] if found[-1] >= high else found[-1] + step
    return first, last

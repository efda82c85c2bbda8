"""Drawings of heatmaps and of parts of a whole."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from kifuse.reporting.colours import STEPS, step_of
from kifuse.reporting.plots import Heatmap, HeatmapPanel, Shares
from kifuse.reporting.svg import CHARACTER, drawing, element, fit, text
from kifuse.reporting.wording import compact, number, shorten

_WIDTH = 430.0
_ROW = 20.0
_LONGEST = 22
"""The longest name below a column, in characters."""


def heatmap_panel(plot: Heatmap, panel: HeatmapPanel, first_row: int) -> Markup:
    """Draw one panel of a heatmap.

    Args:
        plot: The heatmap.
        panel: One of its panels.
        first_row: Row of the heatmap's table where the panel's numbers begin, for the page's tooltips.

    Returns:
        The drawing. All cells of one colour are one path, which keeps large drawings small.
    """
    left = min(max(len(row) for row in plot.rows) * CHARACTER + 8, 128.0)
    columns = max(len(panel.columns), 1)
    cell = max(5.0 if plot.decimals is None else 40.0, min(34.0, (_WIDTH - left) / columns))
    width, height = max(left + cell * columns + 6, 200.0), _ROW * len(plot.rows)
    top, gap = 4.0, 1.0 if cell >= 9 else 0.5
    by_colour: dict[str, list[str]] = {}
    over: list[Markup] = []
    for r, values in enumerate(panel.values):
        for c, value in enumerate(values):
            kind = "void"
            x, y = left + c * cell, top + r * _ROW
            if value is not None:
                kind = f"{'d' if plot.diverging else 'h'}{step_of(value, plot.low, plot.high)}"
                if plot.decimals is not None:
                    shown = number(value, plot.decimals, sign=plot.diverging)
                    over.append(text(x + (cell - gap) / 2, y + 14, shown, f"on-{kind}", "middle"))
            by_colour.setdefault(kind, []).append(
                f"M{x:.2f} {y:g}h{cell - gap:.2f}v{_ROW - 1:g}h{gap - cell:.2f}z"
            )
            if (r, c) in plot.marked:
                over.append(element("rect", x=x, y=y, width=cell - gap, height=_ROW - 1, class_="framed"))
    cells = [element("path", d="".join(parts), class_=kind) for kind, parts in by_colour.items()]
    names = [
        text(left - 7, top + r * _ROW + 14, fit(row, left - 7), "tick", "end")
        for r, row in enumerate(plot.rows)
    ]
    heads, below = _heads(panel.columns, left, top + height, cell)
    title = text(left + cell * columns / 2, top + height + below + 17, plot.column_title, "title", "middle")
    place = [left, top, cell, _ROW, len(plot.rows), columns, first_row]
    sheet = element("g", *cells, *over, class_="cells", data_grid=" ".join(f"{n:g}" for n in place))
    label = (
        f"{plot.title}: {panel.title}. {len(plot.rows)} {plot.row_title}s by {columns} {plot.column_title}s."
    )
    return drawing(width, top + height + below + 23, label, sheet, *names, *heads, title)


def _heads(columns: Sequence[str], left: float, top: float, cell: float) -> tuple[list[Markup], float]:
    """Write the names below the columns, and return their height; names longer than numbers are turned."""
    longest = max(map(len, columns), default=0)
    if longest <= 3:
        every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100) if n * cell >= 24 or n == 100)
        return [
            text(left + (c + 0.5) * cell, top + 13, name, "tick", "middle")
            for c, name in enumerate(columns)
            if c % every == 0
        ], 13.0
    made = []
    for c, name in enumerate(columns):
        x, y = left + (c + 0.6) * cell, top + 10
        turned = f"rotate(-40 {x:g} {y:g})"
        name = shorten(name, _LONGEST)
        made.append(element("text", name, x=x, y=y, transform=turned, class_="tick", text_anchor="end"))
    return made, 10.0 + 0.58 * CHARACTER * min(longest, _LONGEST)


def scale(plot: Heatmap) -> Markup:
    """Draw the scale of a heatmap with its ends and its unit."""
    letter = "d" if plot.diverging else "h"
    each = 8.0
    boxes = [
        element("rect", x=i * each, y=4, width=each, height=10, class_=f"{letter}{i}") for i in range(STEPS)
    ]
    end = STEPS * each
    numbers = [
        text(0, 28, compact(plot.low), "tick"),
        text(end, 28, compact(plot.high), "tick", "end"),
        text(end + 10, 13, plot.unit, "title"),
    ]
    if plot.diverging:
        numbers.append(text(end / 2, 28, "0", "tick", "middle"))
    width = end + 10 + len(plot.unit) * CHARACTER
    label = f"Scale: {compact(plot.low)} to {compact(plot.high)}, {plot.unit}."
    return drawing(width, 34, label, *boxes, *numbers, kind="scale")


def shares(plot: Shares) -> Markup:
    """Draw one bar for each row, divided into parts that add up to 100 percent."""
    width, left, row = 430.0, 112.0, 28.0
    left = min(max(len(name) for name in plot.rows) * CHARACTER + 8, left)
    right, top = width - 14, 4.0
    unit = (right - left) / 100
    made: list[Markup] = []
    for r, (name, values) in enumerate(zip(plot.rows, plot.values, strict=True)):
        y, x = top + r * row, left
        made.append(text(left - 7, y + 17, fit(name, left - 7), "tick", "end"))
        for part, value in enumerate(values):
            tip = f"{name}: {plot.parts[part]} {number(value)}%"
            size = max(value, 0.0) * unit
            made.append(
                element("rect", x=x, y=y, width=size, height=row - 7, class_=f"part p{part}", data_tip=tip)
            )
            if size > 30:
                made.append(text(x + size / 2, y + 16, f"{number(value, 0)}%", f"on p{part}t", "middle"))
            x += size
    bottom = top + row * len(plot.rows)
    for value in (0, 25, 50, 75, 100):
        place = left + value * unit
        made.append(element("line", x1=place, x2=place, y1=bottom - 3, y2=bottom + 2, class_="axis"))
        made.append(text(place, bottom + 15, value, "tick", "middle"))
    made.append(text((left + right) / 2, bottom + 32, plot.unit, "title", "middle"))
    label = f"{plot.title}. One bar for each of {len(plot.rows)} tasks; parts: {', '.join(plot.parts)}."
    return drawing(width, bottom + 38, label, *made)

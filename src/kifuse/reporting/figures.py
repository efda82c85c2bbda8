"""The page's drawings as PNG, SVG and PDF files at the width of a paper's column (`kifuse[figures]`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from kifuse.errors import RunError
from kifuse.io.storage import write_bytes
from kifuse.reporting.drawings import Drawing, DrawnPlot, draw
from kifuse.reporting.plots import Plot, Strips, Timeline
from kifuse.reporting.run_pictures import Missing
from kifuse.reporting.styles import figure_style
from kifuse.reporting.svg import CHARACTER, element, fit, text

COLUMN, PAGE = 241.2, 496.8
"""Widths in points (72 to an inch): one column of a two-column paper, and both columns."""

DOTS = 300
"""Resolution of a PNG file, in dots per inch."""

_GAP, _MARGIN = 22.0, 8.0
"""Units between panels and around all of them; one unit is a pixel on the page."""

_MOST = {COLUMN: 470.0, PAGE: 1010.0}
"""The most units across for each width, so that text of 12 units stays above 5.5 points."""

_LEAST = {COLUMN: 413.0, PAGE: 852.0}
"""The fewest units across for each width; with fewer, text of 12 units would be larger than 7 points."""


def write_figures(plots: Iterable[Plot | Missing], folder: Path) -> list[Path]:
    """Write pictures as files, each as PNG, SVG and PDF.

    Args:
        plots: The pictures; those that are missing are left out.
        folder: The folder to write to. It is made if it does not exist.

    Returns:
        The files.

    Raises:
        RunError: The converter for PNG and PDF is not installed.
        KifuseError: A file cannot be written.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise RunError(
            "figures as files need vl-convert-python, which is not installed. Run: pip install "
            "vl-convert-python"
        ) from error
    files = []
    for plot in plots:
        if isinstance(plot, Missing):
            continue
        # the converter reads a number without a unit as points
        plain = figure(plot, unit="")
        made = {
            "svg": figure(plot).encode("utf-8"),
            "png": vl_convert.svg_to_png(plain, ppi=DOTS),
            "pdf": vl_convert.svg_to_pdf(plain),
        }
        for ending, content in made.items():
            files.append(folder / f"{plot.name}.{ending}")
            write_bytes(files[-1], content)
    return files


def figure(plot: Plot, *, unit: str = "pt") -> Markup:
    """Set the drawings of a plot, with their titles and legend, into one SVG file.

    Args:
        plot: The plot.
        unit: The unit of the file's width and height. Most programs read a number without one as pixels.

    Returns:
        The file's text; `COLUMN` or `PAGE` wide, in light colours, with its style inside.
    """
    drawn = draw(plot)
    if isinstance(drawn, Missing):
        raise TypeError(f"{plot.name}: {drawn.reason}")
    drawings = _one_width(drawn)
    columns = _columns(drawn, len(drawings))
    across = max(_size(each.svg)[0] for each in drawings) * columns + _GAP * (columns - 1)
    width = COLUMN if across <= _MOST[COLUMN] else PAGE
    whole = max(across + 2 * _MARGIN, _LEAST[width])
    parts, bottom = _placed(drawings, columns, (whole - across) / 2)
    key, bottom = _key(drawn, whole, bottom)
    content = element("g", *parts, *key, class_="wide")
    return element(
        "svg",
        element("style", Markup(figure_style())),  # noqa: S704 - a file of kifuse's own
        element("rect", width="100%", height="100%", fill="#fff"),
        content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {whole:g} {bottom:g}",
        width=f"{width:g}{unit}",
        height=f"{bottom * width / whole:.2f}{unit}",
        class_="drawing",
    )


def _one_width(drawn: DrawnPlot) -> list[Drawing]:
    """If there are drawings for wide and for narrow pages, take the one that fits paper."""
    if drawn.layout != "whole":
        return drawn.drawings
    return drawn.drawings[:1] if isinstance(drawn.plot, Timeline) else drawn.drawings[-1:]


def _columns(drawn: DrawnPlot, count: int) -> int:
    if drawn.layout == "tiles":
        return count if count < 4 else 3 if count in (5, 6) else 4
    return 1 if isinstance(drawn.plot, Strips) else min(count, 2)


def _placed(drawings: list[Drawing], columns: int, left: float) -> tuple[list[Markup], float]:
    """Place the drawings in rows below their titles; return them and the height where the last row ends."""
    parts: list[Markup] = []
    top, wide = _MARGIN, max(_size(each.svg)[0] for each in drawings)
    for start in range(0, len(drawings), columns):
        row = drawings[start : start + columns]
        lines = [list(filter(None, (each.title, each.remark))) for each in row]
        head = 16.0 * max(map(len, lines)) + (4 if any(lines) else 0)
        for i, (each, titles) in enumerate(zip(row, lines, strict=True)):
            x = left + i * (wide + _GAP)
            for j, title in enumerate(titles):
                kind = "title" if j else "on"
                parts.append(text(x, top + 12 + 16 * j, fit(title, wide), kind))
            parts.append(_at(x, top + head, each.svg))
        top += head + max(_size(each.svg)[1] for each in row) + 10
    return parts, top


def _key(drawn: DrawnPlot, whole: float, top: float) -> tuple[list[Markup], float]:
    """Place the scale and the legend below the drawings; return them and the height where they end."""
    parts: list[Markup] = []
    if drawn.scale is not None:
        parts.append(_at(_MARGIN, top, drawn.scale))
        top += _size(drawn.scale)[1] + 4
    x = _MARGIN
    for i, (mark, name) in enumerate(drawn.legend):
        name = fit(name, whole - 40)
        size = 22 + CHARACTER * len(name)
        if i and x + size > whole - _MARGIN:
            x, top = _MARGIN, top + 18
        parts += [_at(x, top, mark), text(x + 20, top + 12, name)]
        x += size + 16
    return parts, top + _MARGIN + (18 if drawn.legend else 0)


def _at(x: float, y: float, drawing: Markup) -> Markup:
    return element("g", drawing, transform=f"translate({x:g} {y:g})")


def _size(drawing: Markup) -> tuple[float, float]:
    """Return width and height of a drawing in its own units."""
    found = re.search(r'viewBox="0 0 (\S+) (\S+)"', drawing)
    if found is None:
        raise ValueError(f"a drawing without a viewBox: {drawing[:80]}")
    return float(found[1]), float(found[2])

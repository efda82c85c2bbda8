"""Pictures drawn for the page: each with its drawings, its legend and its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup

from kifuse.reporting.draw_grids import heatmap_panel, scale, shares
from kifuse.reporting.draw_lines import cloud, curve_panel, several, strip_panel, timeline
from kifuse.reporting.pictures import Missing
from kifuse.reporting.plots import Cloud, Curves, Heatmap, Plot, Rows, Shares, Strips, Timeline
from kifuse.reporting.svg import element, marker


@dataclass(frozen=True)
class Drawing:
    """One drawing with what stands above it."""

    svg: Markup
    title: str = ""
    remark: str = ""


@dataclass
class Drawn:
    """A picture as the page has it.

    Attributes:
        id: Its place in the page.
        title: What it shows.
        meaning: How to read it.
        layout: `tiles` beside each other, `half` of the page's width each, or `whole`.
        drawings: One for each panel, or one each for wide and narrow pages.
        legend: (mark, name).
        scale: Of a heatmap.
        heads: Of its numbers.
        rows: Its numbers.
    """

    id: str
    title: str
    meaning: str
    layout: str
    drawings: list[Drawing]
    legend: list[tuple[Markup, str]] = field(default_factory=list)
    scale: Markup | None = None
    heads: list[str] = field(default_factory=list)
    rows: Rows = field(default_factory=list)
    missing = False


def drawn(plot: Plot | Missing) -> Drawn | Missing:
    """Draw a picture.

    Args:
        plot: What is to be seen, or why there is nothing.

    Returns:
        The drawn picture, or the reason as it came.
    """
    if isinstance(plot, Missing):
        return plot
    heads, rows = plot.table()
    done = Drawn(f"figure-{plot.name}", plot.title, plot.meaning, "whole", [], heads=heads, rows=rows)
    if isinstance(plot, Heatmap):
        _heatmap(plot, done)
    elif isinstance(plot, Curves):
        _curves(plot, done)
    elif isinstance(plot, Timeline):
        done.drawings = [Drawing(timeline(plot, narrow=narrow)) for narrow in (False, True)]
        if plot.marks:
            tick = element("path", d="M7 3v10", class_="rug")
            done.legend = [(_sample(tick), plot.mark)]
    elif isinstance(plot, Shares):
        done.drawings = [Drawing(shares(plot))]
        done.legend = [
            (_sample(element("rect", x=1, y=2, width=12, height=12, class_=f"part p{i}")), part)
            for i, part in enumerate(plot.parts)
        ]
    elif isinstance(plot, Strips):
        done.layout = "half"
        done.drawings = [Drawing(strip_panel(plot, i)) for i in range(len(plot.panels))]
    elif isinstance(plot, Cloud):
        done.drawings = [Drawing(cloud(plot, narrow=narrow)) for narrow in (False, True)]
    return done


def all_drawn(plots: Iterable[Plot | Missing]) -> list[Drawn | Missing]:
    """Draw several pictures."""
    return [drawn(plot) for plot in plots]


def _heatmap(plot: Heatmap, done: Drawn) -> None:
    done.layout = "half"
    done.scale = scale(plot)
    done.drawings = [
        Drawing(heatmap_panel(plot, panel, i * len(plot.rows)), panel.title)
        for i, panel in enumerate(plot.panels)
    ]


def _curves(plot: Curves, done: Drawn) -> None:
    if plot.wide:
        done.drawings = [
            Drawing(curve_panel(plot, panel, narrow=narrow), panel.title, panel.remark)
            for panel in plot.panels
            for narrow in (False, True)
        ]
    else:
        done.layout = "tiles"
        done.drawings = [
            Drawing(curve_panel(plot, panel), panel.title, panel.remark) for panel in plot.panels
        ]
    shown = {line.group: line.label for panel in plot.panels for line in panel.lines if not line.faint}
    if plot.dots or any(several(panel) for panel in plot.panels):
        done.legend = [(_sample(marker(i, 7, 8, size=4)), label) for i, label in sorted(shown.items())]


def _sample(*children: Markup) -> Markup:
    """A mark for a legend, whose name stands beside it."""
    return element(
        "svg", *children, viewBox="0 0 14 16", width=14, height=16, class_="sample", aria_hidden="true"
    )

"""Draw every kind of plot, with its legend, for the page and for files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup

from kifuse.reporting.draw_curves_and_points import cloud, curve_panel, several, strip_panel, timeline
from kifuse.reporting.draw_heatmaps_and_bars import heatmap_panel, scale, shares
from kifuse.reporting.plots import Cloud, Curves, Heatmap, Plot, Shares, Strips, Timeline
from kifuse.reporting.run_pictures import Missing
from kifuse.reporting.svg import element, marker


@dataclass(frozen=True)
class Drawing:
    """One drawing, with the title and the remark to write above it."""

    svg: Markup
    title: str = ""
    remark: str = ""


@dataclass
class DrawnPlot:
    """A plot as drawings.

    Attributes:
        plot: The plot.
        layout: `tiles` stand beside each other, `half` takes half of the page's width, `whole` all of it.
        drawings: One for each panel. For `whole`: one for wide pages and one for narrow ones, or one for all.
        legend: Pairs (mark, name).
        scale: The scale of a heatmap's colours.
    """

    plot: Plot
    layout: str
    drawings: list[Drawing]
    legend: list[tuple[Markup, str]] = field(default_factory=list)
    scale: Markup | None = None

    @property
    def id(self) -> str:
        """The id of the plot's place in the page."""
        return f"figure-{self.plot.name}"


def draw(plot: Plot | Missing) -> DrawnPlot | Missing:
    """Draw a plot.

    Args:
        plot: The plot, or the reason why there is none.

    Returns:
        The drawings; a reason is returned as it is.

    Raises:
        TypeError: There is no drawing for plots of this kind.
    """
    if isinstance(plot, Missing):
        return plot
    if isinstance(plot, Heatmap):
        panels = [
            Drawing(heatmap_panel(plot, panel, i * len(plot.rows)), panel.title)
            for i, panel in enumerate(plot.panels)
        ]
        frame = _sample(element("rect", x=1, y=2, width=12, height=12, class_="framed"))
        return DrawnPlot(plot, "half", panels, [(frame, plot.marks)] if plot.marks else [], scale(plot))
    if isinstance(plot, Curves):
        widths = (False, True) if plot.wide else (False,)
        panels = [
            Drawing(curve_panel(plot, panel, narrow=narrow), panel.title, panel.remark)
            for panel in plot.panels
            for narrow in widths
        ]
        return DrawnPlot(plot, "whole" if plot.wide else "tiles", panels, _groups(plot))
    if isinstance(plot, Timeline):
        mark = _sample(element("path", d="M7 3v10", class_="rug"))
        both = [Drawing(timeline(plot, narrow=narrow)) for narrow in (False, True)]
        return DrawnPlot(plot, "whole", both, [(mark, plot.mark)] if plot.marks else [])
    if isinstance(plot, Shares):
        legend = [
            (_sample(element("rect", x=1, y=2, width=12, height=12, class_=f"part p{i}")), part)
            for i, part in enumerate(plot.parts)
        ]
        return DrawnPlot(plot, "whole", [Drawing(shares(plot))], legend)
    if isinstance(plot, Strips):
        return DrawnPlot(plot, "half", [Drawing(strip_panel(plot, i)) for i in range(len(plot.panels))])
    if isinstance(plot, Cloud):
        return DrawnPlot(plot, "whole", [Drawing(cloud(plot, narrow=narrow)) for narrow in (False, True)])
    raise TypeError(f"{type(plot).__name__}: no drawing is known for it.")


def draw_all(plots: Iterable[Plot | Missing]) -> list[DrawnPlot | Missing]:
    """Draw several plots."""
    return [draw(plot) for plot in plots]


def _groups(plot: Curves) -> list[tuple[Markup, str]]:
    """Return the marks of the curves if a panel shows more than one."""
    if not plot.dots and not any(several(panel) for panel in plot.panels):
        return []
    names = {line.group: line.label for panel in plot.panels for line in panel.lines if not line.faint}
    return [(_sample(marker(i, 7, 8, size=4)), label) for i, label in sorted(names.items())]


def _sample(*children: Markup) -> Markup:
    """Make a mark for a legend; its name is written beside it."""
    return element(
        "svg", *children, viewBox="0 0 14 16", width=14, height=16, class_="sample", aria_hidden="true"
    )

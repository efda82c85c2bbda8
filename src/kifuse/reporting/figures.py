"""Pictures as PNG and SVG files at the width of a paper's column, through matplotlib (`kifuse[figures]`)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kifuse.errors import RunError
from kifuse.reporting.colours import LIGHT, STEPS, step_of, text_on
from kifuse.reporting.draw_lines import several, value_range
from kifuse.reporting.pictures import Missing
from kifuse.reporting.plots import Cloud, Curves, Grid, Heatmap, Plot, Shares, Strips, Timeline
from kifuse.reporting.svg import log_ticks, ticks
from kifuse.reporting.wording import clean, number, shorten
from kifuse.storage import write_bytes

COLUMN, PAGE = 3.35, 6.9
"""Widths in inches: one column of a two-column paper, and both."""

_MARKERS = ("o", "s", "^", "D", "v", "x")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 2)), (0, (7, 2, 1, 2)), (0, (3, 1)), "-")
_SETTINGS: dict[str, Any] = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT.axis,
    "axes.labelcolor": LIGHT.ink,
    "text.color": LIGHT.ink,
    "xtick.color": LIGHT.muted,
    "ytick.color": LIGHT.muted,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "kifuse",
    # names of tasks are no formulas
    "text.parse_math": False,
}


def write_figures(plots: Iterable[Plot | Missing], folder: Path) -> list[Path]:
    """Draw pictures into files, each as PNG (300 dots an inch) and SVG.

    Args:
        plots: The pictures; those that are missing are left out.
        folder: Where to; made if need be.

    Returns:
        The files.

    Raises:
        RunError: matplotlib is not installed.
        KifuseError: A file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError as error:
        raise RunError(
            "figures as files need matplotlib, which is not installed: pip install matplotlib."
        ) from error
    files = []
    wide = [name for name in ("Noto Sans CJK JP", "Noto Sans") if name in font_manager.get_font_names()]
    settings: Any = {**_SETTINGS, "font.family": ["DejaVu Sans", *wide]}
    with (
        matplotlib.rc_context(settings),
        warnings.catch_warnings(),
    ):
        # a letter that no font has is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for plot in plots:
            if not isinstance(plot, Missing):
                figure = figure_of(plot)
                # laid out once for both files
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
                for ending in ("png", "svg"):
                    files.append(folder / f"{plot.name}.{ending}")
                    write_bytes(files[-1], _saved(figure, ending))
    return files


def _saved(figure: Any, ending: str) -> bytes:
    stream = io.BytesIO()
    # no date and no version, so that the same record makes the same file
    metadata = {"Date": None, "Creator": "kifuse"} if ending == "svg" else {"Software": "kifuse"}
    figure.savefig(stream, format=ending, metadata=metadata)
    return stream.getvalue()


def figure_of(plot: Plot) -> Any:
    """Draw a picture as a matplotlib figure.

    Args:
        plot: The picture.

    Returns:
        The figure, `COLUMN` or `PAGE` inches wide.
    """
    if isinstance(plot, Heatmap):
        return _heatmap(plot)
    if isinstance(plot, Curves):
        return _curves(plot)
    if isinstance(plot, Timeline):
        return _timeline(plot)
    if isinstance(plot, Shares):
        return _shares(plot)
    if isinstance(plot, Strips):
        return _strips(plot)
    if isinstance(plot, Cloud):
        return _cloud(plot)
    raise TypeError(f"{type(plot).__name__}: no figure is known for it.")


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with so many axes; height is that of a row in inches."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.04, wspace=0.04, hspace=0.06)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def _heatmap(plot: Heatmap) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = LIGHT.steps(plot.diverging)
    columns = 2 if len(plot.panels) > 1 else 1
    widest = max(len(panel.columns) for panel in plot.panels)
    width = PAGE if columns > 1 or widest > 8 else COLUMN
    printed = plot.decimals is not None
    figure, axes = _grid(len(plot.panels), columns, width, (0.2 if printed else 0.13) * len(plot.rows) + 0.85)
    for axis, panel in zip(axes, plot.panels, strict=True):
        _cells(axis, plot, panel, colours)
        every = 1 if printed else max(1, math.ceil(len(panel.columns) / 16))
        places = range(0, len(panel.columns), every)
        names = [shorten(panel.columns[i], 22) for i in places]
        turned = max(map(len, names), default=0) > 3
        axis.set_xticks(
            [i + 0.5 for i in places], names, rotation=40 if turned else 0, ha="right" if turned else "center"
        )
        axis.set_yticks([i + 0.5 for i in range(len(plot.rows))], [shorten(row, 24) for row in plot.rows])
        axis.set(xlabel=plot.column_title, ylim=(len(plot.rows), 0))
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_title(shorten(panel.title, 60))
    scale = ScalarMappable(Normalize(plot.low, plot.high), ListedColormap(colours))
    bar = figure.colorbar(scale, ax=axes, label=plot.unit, fraction=0.05, pad=0.02, aspect=25)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _cells(axis: Any, plot: Heatmap, panel: Grid, colours: list[str]) -> None:
    """The coloured cells of one panel, its numbers and its frames."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    steps = [
        [-1 if value is None else step_of(value, plot.low, plot.high) for value in row]
        for row in panel.values
    ]
    # the first colour is that of cells without a value
    known = ListedColormap([LIGHT.raised, *colours])
    axis.pcolormesh(steps, cmap=known, vmin=-1.5, vmax=STEPS - 0.5, edgecolors=LIGHT.paper, linewidth=0.3)
    for r, c in plot.marked:
        axis.add_patch(Rectangle((c, r), 1, 1, fill=False, edgecolor=LIGHT.ink, linewidth=0.9, zorder=2))
    if plot.decimals is None:
        return
    size = 6.5 if len(panel.columns) <= 10 else 5.5
    for r, row in enumerate(panel.values):
        for c, value in enumerate(row):
            if value is not None:
                shown = number(value, plot.decimals, sign=plot.diverging)
                colour = text_on(colours[steps[r][c]])
                axis.text(c + 0.5, r + 0.5, shown, ha="center", va="center", size=size, color=colour)


def _curves(plot: Curves) -> Any:
    count = len(plot.panels)
    columns = min(count, 2 if count <= 2 else 5 if count <= 5 else 4)
    width = COLUMN if count <= 2 else PAGE
    figure, axes = _grid(count, columns, width, 2.2 if count == 1 else 1.5)
    for place, (axis, panel) in enumerate(zip(axes, plot.panels, strict=True)):
        grouped = plot.dots or several(panel)
        for line in panel.lines:
            if not line.points:
                continue
            xs, ys = zip(*line.points, strict=True)
            if line.faint:
                axis.plot(xs, ys, color=LIGHT.faint, linewidth=0.6, zorder=1)
                continue
            group = line.group % len(_MARKERS) if grouped else 0
            axis.plot(
                xs,
                ys,
                color=LIGHT.groups[group] if grouped else LIGHT.accent,
                linestyle="none" if plot.dots else _DASHES[group],
                marker=_MARKERS[group],
                markersize=2.2 if plot.dots else 3,
                label=clean(line.label) if place == 0 and grouped else None,
            )
        axis.set(xlim=plot.x_range, ylim=plot.y_range)
        axis.set_xticks(ticks(*plot.x_range, 6, whole=plot.whole))
        axis.set_yticks(ticks(*plot.y_range, 5))
        axis.grid(axis="y", color=LIGHT.line, linewidth=0.5)
        axis.set_axisbelow(True)
        for artist in axis.lines:
            artist.set_clip_on(False)
        axis.set_title("\n".join(filter(None, (shorten(panel.title, 24), panel.remark))), loc="left")
    figure.supxlabel(plot.x_title, size=7.5)
    figure.supylabel(plot.y_title, size=7.5)
    if axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3 if width == PAGE else 2)
    return figure


def _timeline(plot: Timeline) -> Any:
    figure, (axis,) = _grid(1, 1, PAGE, 2.1)
    for i, (name, first, last) in enumerate(plot.spans):
        if i % 2 == 0:
            axis.axvspan(first, last, color=LIGHT.raised, zorder=0)
        room = int(95 * (last - first) / max(plot.spans[-1][2], 1))
        shown = shorten(name, room) if room > 6 else str(i + 1)
        axis.text(
            (first + last) / 2, 1.02, shown, transform=axis.get_xaxis_transform(), ha="center", size=6.5
        )
    for line in plot.lines:
        xs, ys = zip(*line.points, strict=True)
        axis.plot(xs, ys, color=LIGHT.accent, linewidth=1)
    if plot.log:
        axis.set_yscale("log")
        values = [y for line in plot.lines for _, y in line.points]
        found = log_ticks(min(values) / 1.1, max(values) * 1.1)
        axis.set_yticks(found, [f"{value:g}" for value in found])
        axis.set_yticks([], minor=True)
    else:
        axis.set_ylim(bottom=0)
    if plot.marks:
        heights = [0.04] * len(plot.marks)
        transform = axis.get_xaxis_transform()
        axis.vlines(
            plot.marks, 0, heights, color=LIGHT.groups[1], linewidth=0.7, transform=transform, label=plot.mark
        )
        axis.legend(loc="upper right", bbox_to_anchor=(1, 0.98))
    axis.set(
        xlabel=plot.x_title,
        ylabel=f"{plot.y_title}, logarithmic" if plot.log else plot.y_title,
        xlim=(0, plot.spans[-1][2] if plot.spans else 1),
    )
    return figure


def _shares(plot: Shares) -> Any:
    figure, (axis,) = _grid(1, 1, COLUMN, 0.19 * len(plot.rows) + 0.95)
    colours = LIGHT.parts
    left = [0.0] * len(plot.rows)
    for part, name in enumerate(plot.parts):
        sizes = [values[part] for values in plot.values]
        axis.barh(range(len(left)), sizes, left=left, height=0.72, color=colours[part], label=name)
        for row, size in enumerate(sizes):
            if size >= 9:
                place = left[row] + size / 2
                axis.text(
                    place,
                    row,
                    f"{number(size, 0)}%",
                    ha="center",
                    va="center",
                    size=6,
                    color=text_on(colours[part]),
                )
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axis.set_yticks(range(len(plot.rows)), [shorten(row, 24) for row in plot.rows])
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel=plot.unit)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _strips(plot: Strips) -> Any:
    figure, axes = _grid(len(plot.panels), 1, COLUMN, 0.24 * len(plot.rows) + 0.6)
    for axis, (title, means) in zip(axes, plot.panels, strict=True):
        for row, mean in enumerate(means):
            if mean is not None:
                axis.errorbar(mean.value, row, xerr=mean.deviation, color=LIGHT.axis, capsize=2, linewidth=1)
                if len(mean.values) > 1:
                    axis.scatter(
                        mean.values,
                        [row] * len(mean.values),
                        s=7,
                        facecolor="white",
                        edgecolor=LIGHT.muted,
                        linewidth=0.6,
                        zorder=3,
                    )
                axis.plot(
                    mean.value,
                    row,
                    marker=_MARKERS[row % 6],
                    color=LIGHT.groups[row % 6],
                    markersize=4.5,
                    zorder=4,
                )
        axis.set_yticks(range(len(plot.rows)), [shorten(name, 34) for name in plot.rows])
        axis.set(ylim=(len(plot.rows) - 0.5, -0.5), xlabel=title)
        axis.set_xlim(*value_range([mean for mean in means if mean is not None]))
        axis.grid(axis="x", color=LIGHT.line, linewidth=0.5)
        axis.set_axisbelow(True)
    return figure


def _cloud(plot: Cloud) -> Any:
    figure, (axis,) = _grid(1, 1, COLUMN, 2.5)
    for i, name, x, y in plot.points:
        colour, mark = LIGHT.groups[i % 6], _MARKERS[i % 6]
        axis.errorbar(
            x.value,
            y.value,
            xerr=x.deviation,
            yerr=y.deviation,
            color=colour,
            marker=mark,
            markersize=5,
            linewidth=0.8,
        )
        axis.annotate(shorten(name, 40), (x.value, y.value), xytext=(4, 5), textcoords="offset points")
    axis.set(xlabel=plot.x_title, ylabel=plot.y_title)
    low, high = value_range([x for _, _, x, _ in plot.points], floor=0.0)
    # room for the names on the right
    axis.set_xlim(low, high + 0.25 * (high - low))
    axis.set_ylim(*value_range([y for _, _, _, y in plot.points]))
    axis.grid(color=LIGHT.line, linewidth=0.5)
    axis.set_axisbelow(True)
    return figure

"""The kinds of pictures as plain data. The page and the figure files draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kifuse.reporting.wording import NONE, compact, number


@dataclass(frozen=True)
class Plot:
    """The common part of every kind of picture.

    Attributes:
        name: The file name, without an ending.
        title: A few words that say what the picture shows.
        meaning: Plain sentences that say how to read it, and what it says here.
    """

    name: str
    title: str
    meaning: str

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the numbers of the picture as a table.

        Returns:
            The heads, and rows with a cell for each head.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class HeatmapPanel:
    """One panel of a heatmap; `values[row][column]` is None if there is no value."""

    title: str
    values: Sequence[Sequence[float | None]]
    columns: Sequence[str]


@dataclass(frozen=True)
class Heatmap(Plot):
    """Values as colours, rows by columns.

    Attributes:
        rows: The names of the rows, the same in every panel.
        row_title: What a row stands for.
        column_title: What a column stands for.
        unit: What a value is, with its unit.
        panels: One or more grids.
        low: Value of the scale's first colour.
        high: Value of the scale's last colour.
        diverging: Whether the scale has zero in its middle.
        decimals: Decimals of the number written into each cell; None writes no number.
        marked: Cells (row, column) with a frame around them.
        marks: What the frames mean.
    """

    rows: Sequence[str]
    row_title: str
    column_title: str
    unit: str
    panels: Sequence[HeatmapPanel]
    low: float
    high: float
    diverging: bool = False
    decimals: int | None = None
    marked: frozenset[tuple[int, int]] = frozenset()
    marks: str = ""

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for each row of each panel."""
        widest = max(self.panels, key=lambda panel: len(panel.columns)).columns
        heads = ["panel", self.row_title, *(f"{self.column_title} {name}" for name in widest)]
        rows: list[list[str]] = []
        for panel in self.panels:
            for name, values in zip(self.rows, panel.values, strict=True):
                cells = [compact(v) if self.decimals is None else number(v, self.decimals) for v in values]
                rows.append([panel.title, name, *cells, *[""] * (len(widest) - len(cells))])
        if len(self.panels) == 1 and not self.panels[0].title:
            return heads[1:], [row[1:] for row in rows]
        return heads, rows


@dataclass(frozen=True)
class Line:
    """A curve: `points` are (x, y) from left to right.

    A faint curve is drawn only for comparison. `group` is the number of the curve's colour and mark.
    """

    label: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    group: int = 0


@dataclass(frozen=True)
class CurvePanel:
    """One panel of curves, with a short remark beside its title."""

    title: str
    lines: Sequence[Line]
    remark: str = ""


@dataclass(frozen=True)
class Curves(Plot):
    """Curves in small panels with the same scale.

    Attributes:
        panels: One or more.
        x_title: Title of the horizontal axis, with its unit.
        y_title: Title of the vertical axis, with its unit.
        x_range: The lowest and the highest x.
        y_range: The lowest and the highest y.
        dots: Whether points are dots without lines between them.
        whole: Whether x has whole numbers only.
        wide: Whether the plot is one large panel.
        log: Whether the horizontal axis is logarithmic.
    """

    panels: Sequence[CurvePanel]
    x_title: str
    y_title: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    dots: bool = False
    whole: bool = False
    wide: bool = False
    log: bool = False

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for each point of each curve, without the faint curves."""
        rows = [
            [panel.title, line.label, compact(x), compact(y)]
            for panel in self.panels
            for line in panel.lines
            if not line.faint
            for x, y in line.points
        ]
        heads = ["panel", "curve", self.x_title, self.y_title]
        if all(row[1] in ("", row[0]) for row in rows):
            return [heads[0], *heads[2:]], [[row[0], *row[2:]] for row in rows]
        return heads, rows


@dataclass(frozen=True)
class Timeline(Plot):
    """A quantity over the steps of the whole stream of tasks.

    Attributes:
        spans: (task, first step, last step), one after the other.
        lines: A curve for each task.
        marks: The steps that are marked.
        mark: What happened at a marked step.
        x_title: Title of the horizontal axis, with its unit.
        y_title: Title of the vertical axis, with its unit.
        log: Whether the vertical axis is logarithmic.
    """

    spans: Sequence[tuple[str, float, float]]
    lines: Sequence[Line]
    marks: Sequence[float]
    mark: str
    x_title: str
    y_title: str
    log: bool = False

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for each point."""
        rows = [[line.label, compact(x), compact(y)] for line in self.lines for x, y in line.points]
        return ["task", self.x_title, self.y_title], rows


@dataclass(frozen=True)
class Shares(Plot):
    """Parts of a whole, one bar for each row.

    Attributes:
        rows: The names of the rows.
        parts: The names of the parts.
        values: `values[row][part]`, percent of the row.
        unit: The whole that the parts belong to, with the unit.
    """

    rows: Sequence[str]
    parts: Sequence[str]
    values: Sequence[Sequence[float]]
    unit: str

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for each bar."""
        rows = [
            [name, *(f"{number(v)}%" for v in values)]
            for name, values in zip(self.rows, self.values, strict=True)
        ]
        return ["task", *self.parts], rows


@dataclass(frozen=True)
class Mean:
    """A mean with its standard deviation (None for a single value), and the single values."""

    value: float
    deviation: float | None
    values: Sequence[float]

    def __str__(self) -> str:
        return number(self.value) + (
            "" if self.deviation is None else f"\u00a0±\u00a0{number(self.deviation)}"
        )


@dataclass(frozen=True)
class Strips(Plot):
    """Means with their spread and the single values: a panel for each quantity, a line for each row.

    Attributes:
        rows: The names of the rows, the same in every panel.
        panels: Pairs of a title with its unit, and a mean or None for each row.
    """

    rows: Sequence[str]
    panels: Sequence[tuple[str, Sequence[Mean | None]]]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for each row."""
        rows = [
            [name, *(NONE if means[i] is None else str(means[i]) for _, means in self.panels)]
            for i, name in enumerate(self.rows)
        ]
        return ["method", *(title for title, _ in self.panels)], rows


@dataclass(frozen=True)
class Cloud(Plot):
    """Labelled points in the plane, with their spread.

    Attributes:
        points: (group, label, x, y); the group is the number of the colour and mark.
        x_title: Title of the horizontal axis, with its unit.
        y_title: Title of the vertical axis, with its unit.
    """

    points: Sequence[tuple[int, str, Mean, Mean]]
    x_title: str
    y_title: str

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for each point."""
        return ["method", self.x_title, self.y_title], [[n, str(x), str(y)] for _, n, x, y in self.points]

"""Pictures as files: each as PNG, SVG and PDF, with units on its axes, legible at the width of a column."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("vl_convert", reason="vl-convert-python is not installed (kifuse[figures])")

from kifuse.errors import RunError
from kifuse.reporting.all_plots_and_tables import all_plots, all_tables
from kifuse.reporting.figures import COLUMN, DOTS, PAGE, figure, write_figures
from kifuse.reporting.plots import Cloud, Curves, Heatmap, Plot, Shares, Strips, Timeline
from kifuse.reporting.run_groups import Run
from kifuse.reporting.run_pictures import Missing
from kifuse.reporting.styles import figure_style
from tests.unit.reporting.measured_runs import hostile_record, kif_record, rounds_record
from tests.unit.reporting.runs import make_record

KIF = [Run(kif_record(tasks=["a", "b"]))]
ROUNDS = [Run(rounds_record(tasks=["a", "b"]))]
SEVERAL = [
    Run(make_record("sequential", full=True)),
    Run(kif_record(drop=2.0)),
    Run(kif_record(drop=3.0, seeds={"training": 1})),
    Run(rounds_record()),
]


def plots(runs: list[Run]) -> list[Plot]:
    return [plot for plot in all_plots(runs) if not isinstance(plot, Missing)]


def drawn(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(figure(plot))  # noqa: S314


def words(plot: Plot) -> list[str]:
    return [text.text or "" for text in drawn(plot).iter("{http://www.w3.org/2000/svg}text")]


def test_every_picture_becomes_three_files_that_can_be_read(tmp_path: Path):
    wanted = plots(ROUNDS)
    files = write_figures(wanted, tmp_path / "new")
    assert {file.stem for file in files} == {plot.name for plot in wanted}
    for file in files:
        data = file.read_bytes()
        if file.suffix == ".png":
            assert data.startswith(b"\x89PNG")
            assert int.from_bytes(data[16:20], "big") in [
                pytest.approx(w / 72 * DOTS, abs=1) for w in (COLUMN, PAGE)
            ]
        elif file.suffix == ".pdf":
            assert data.startswith(b"%PDF")
            wide = float(re.findall(rb"MediaBox \[0 0 ([\d.]+)", data)[0])
            assert wide in [pytest.approx(width) for width in (COLUMN, PAGE)]
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")  # noqa: S314


def titles(plot: Plot) -> list[str]:
    """What the axes and colours of a picture must be called."""
    if isinstance(plot, Heatmap):
        return [plot.unit, plot.column_title or plot.panels[0].columns[0], *plot.rows]
    if isinstance(plot, Curves | Timeline | Cloud):
        log = ", logarithmic" if isinstance(plot, Timeline) and plot.log else ""
        return [plot.x_title, plot.y_title + log]
    if isinstance(plot, Shares):
        return [plot.unit, *plot.rows, *plot.parts]
    assert isinstance(plot, Strips)
    return [*plot.rows, *(title for title, _ in plot.panels)]


@pytest.mark.parametrize("runs", [KIF, ROUNDS, SEVERAL], ids=["kif", "rounds", "several"])
def test_every_axis_has_a_title_and_every_figure_the_width_of_a_paper(runs: list[Run]):
    for plot in plots(runs):
        assert float(drawn(plot).get("width", "").removesuffix("pt")) in (COLUMN, PAGE)
        assert set(titles(plot)) <= set(words(plot)), plot.name


def test_text_is_never_smaller_than_print_can_carry():
    sizes = [float(size) for size in re.findall(r"font[^;}]*?([\d.]+)px", figure_style())]
    assert sizes
    for plot in plots(KIF) + plots(ROUNDS) + plots(SEVERAL):
        root = drawn(plot)
        units = float(root.get("viewBox", "").split()[2])
        assert min(sizes) * float(root.get("width", "").removesuffix("pt")) / units >= 5.5


def test_the_score_matrix_has_its_numbers_frames_and_what_they_mean():
    (matrix,) = [plot for plot in plots(KIF) if plot.name == "score-matrix"]
    assert {"90.0", "20.0", "80.0", "right after the task was learned"} <= set(words(matrix))
    assert figure(matrix).count('class="framed"') == 3  # two tasks, and one in the legend


def test_a_figure_needs_no_style_from_elsewhere():
    for plot in plots(KIF):
        assert "var(" not in figure(plot)


def test_names_are_neither_formulas_nor_markup(tmp_path: Path):
    for file in write_figures(plots([Run(hostile_record())]), tmp_path):
        if file.suffix == ".svg":
            tags = {each.tag.rpartition("}")[2] for each in ElementTree.fromstring(file.read_bytes()).iter()}  # noqa: S314
            assert not tags & {"script", "img", "foreignObject"}


def test_the_same_record_makes_the_same_files(tmp_path: Path):
    wanted = plots(KIF)[:2]
    # the fonts of a PDF come in any order
    one, two = ([f for f in write_figures(wanted, tmp_path / name) if f.suffix != ".pdf"] for name in "ab")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_without_the_converter_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(RunError, match="pip install vl-convert-python"):
        write_figures(plots(KIF), tmp_path)


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (KIF, ["scores", "methods", "tasks", "runs"]),
        (SEVERAL, ["methods", "differences", "tasks", "runs"]),
    ],
)
def test_tables_are_collected_with_the_matrix_for_one_run(runs: list[Run], names: list[Any]):
    assert [table.name for table in all_tables(runs)] == names

"""Pictures as files: each as PNG and SVG, with units on its axes, legible at the width of a column."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (kifuse[figures])")

from kifuse.errors import RunError
from kifuse.reporting.collected import all_plots, all_sheets
from kifuse.reporting.figures import COLUMN, PAGE, figure_of, write_figures
from kifuse.reporting.groups import Run
from kifuse.reporting.pictures import Missing
from kifuse.reporting.plots import Plot
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


def test_every_picture_becomes_two_files_that_can_be_read(tmp_path: Path):
    wanted = plots(ROUNDS)
    files = write_figures(wanted, tmp_path / "new")
    assert {file.stem for file in files} == {plot.name for plot in wanted}
    for file in files:
        data = file.read_bytes()
        if file.suffix == ".png":
            assert data.startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")  # noqa: S314


@pytest.mark.parametrize("runs", [KIF, ROUNDS, SEVERAL], ids=["kif", "rounds", "several"])
def test_every_axis_has_a_title_and_every_figure_the_width_of_a_paper(runs: list[Run]):
    for plot in plots(runs):
        figure = figure_of(plot)
        assert figure.get_size_inches()[0] in (COLUMN, PAGE)
        axes = [axis for axis in figure.axes if axis.get_visible()]
        shared = [figure.get_supxlabel(), figure.get_supylabel()]
        for axis in axes:
            bar = axis.get_label() == "<colorbar>"
            named = [axis.get_xlabel() or shared[0], axis.get_ylabel() or shared[1]]
            labelled = [bool(t.get_text()) for t in axis.get_yticklabels()]
            # rows with names of their own need no title
            assert named[1] or any(labelled), f"{plot.name}: y"
            assert bar or named[0] or any(t.get_text() for t in axis.get_xticklabels()), f"{plot.name}: x"


def test_text_is_never_smaller_than_print_can_carry():
    for plot in plots(KIF) + plots(SEVERAL):
        figure = figure_of(plot)
        sizes = [text.get_fontsize() for axis in figure.axes for text in axis.texts]
        sizes += [
            t.get_fontsize() for axis in figure.axes for t in (*axis.get_xticklabels(), axis.xaxis.label)
        ]
        assert min(sizes) >= 5.5


def test_names_are_neither_formulas_nor_markup(tmp_path: Path):
    for file in write_figures(plots([Run(hostile_record())]), tmp_path):
        if file.suffix == ".svg":
            tags = {each.tag.rpartition("}")[2] for each in ElementTree.fromstring(file.read_bytes()).iter()}  # noqa: S314
            assert not tags & {"script", "img", "foreignObject"}


def test_the_same_record_makes_the_same_files(tmp_path: Path):
    wanted = plots(KIF)[:2]
    one, two = (write_figures(wanted, tmp_path / name) for name in "ab")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match="pip install matplotlib"):
        write_figures(plots(KIF), tmp_path)


@pytest.mark.parametrize(
    ("runs", "names"),
    [(KIF, ["scores", "methods", "tasks", "runs"]), (SEVERAL, ["methods", "tasks", "runs"])],
)
def test_tables_are_collected_with_the_matrix_for_one_run(runs: list[Run], names: list[Any]):
    assert [sheet.name for sheet in all_sheets(runs)] == names

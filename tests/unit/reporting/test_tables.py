"""Tables for other programs: what a spreadsheet, a note and a paper take from them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from kifuse.reporting.comparison_tables import (
    methods_table,
    reference,
    runs_table,
    scores_table,
    tasks_table,
)
from kifuse.reporting.run_groups import Run, group_runs
from kifuse.reporting.tables import Cell, Table, write_tables
from tests.unit.reporting.measured_runs import HOSTILE
from tests.unit.reporting.runs import make_record


def runs_of(*drops: float, method: str = "kif", **fields: object) -> list[Run]:
    return [
        Run(make_record(method, drop=drop, seeds={"training": seed}, **fields), None, f"{method}{seed}")  # pyright: ignore[reportArgumentType]
        for seed, drop in enumerate(drops)
    ]


def test_methods_have_means_and_deviations_in_every_format():
    table = methods_table(group_runs([*runs_of(4.0, 8.0), *runs_of(20.0, method="sequential")]))
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    # AP is 90 - 2 * drop over five tasks: 82 and 74
    assert float(rows[0]["AP"]) == pytest.approx(78.0)
    assert float(rows[0]["AP (standard deviation)"]) == pytest.approx(5.7)
    assert rows[1]["AP (standard deviation)"] == ""
    assert "| kif | 2 | 78.0 ± 5.7 |" in table.md()
    assert r"kif & 2 & 78.0 $\pm$ 5.7 &" in table.tex()
    assert r"\begin{tabular}{lrr" in table.tex()


def test_a_missing_metric_is_empty_in_csv_and_explained_in_a_note():
    table = methods_table(group_runs(runs_of(0.0, method="joint", data_class="all data")))
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert row["BWT"] == ""
    assert any("BWT" in note and "at once" in note for note in table.notes)
    assert "% joint: no" in table.tex()


def test_tasks_are_compared_with_the_first_that_learned_one_after_another():
    joint = runs_of(0.0, method="joint", data_class="all data")
    groups = group_runs([*joint, *runs_of(10.0, method="sequential"), *runs_of(2.0)])
    assert reference(groups)[0].label == "sequential"
    rows = list(csv.reader(io.StringIO(tasks_table(groups).csv())))
    assert rows[0][:4] == ["task", "sequential", "joint", "joint \u2212 sequential"]
    # yelp falls four times: by 40, by 0, by 8
    assert rows[1] == ["yelp", "50", "90", "40", "82", "32"]


def test_every_run_has_a_line_with_its_seed():
    runs = runs_of(4.0, 8.0)
    (group,) = group_runs(runs)
    rows = list(csv.DictReader(io.StringIO(runs_table(runs, {id(r): group.label for r in runs}).csv())))
    assert [(row["run"], row["seed"], row["status"]) for row in rows] == [
        ("kif0", "0", "finished"),
        ("kif1", "1", "finished"),
    ]
    assert float(rows[0]["BWT"]) == pytest.approx(-10.0)


def test_the_matrix_of_a_run_has_its_moments():
    rows = list(csv.reader(io.StringIO(scores_table(make_record(tasks=["a", "b"])).csv())))
    assert rows == [["after", "a", "b"], ["1 a", "90", "20"], ["2 b", "80", "90"]]


def test_unlike_data_is_pointed_out():
    runs = runs_of(1.0, 2.0)
    for run, digest in zip(runs, "ab", strict=True):
        run.record.tasks[0].hashes = {"test": digest * 64}
    assert "The runs were scored on different test examples of yelp." in methods_table(group_runs(runs)).notes


def test_unlike_orders_models_and_unfinished_runs_are_pointed_out():
    runs = [
        *runs_of(1.0),
        *runs_of(1.0, tasks=["amazon", "yelp", "mnli", "cb", "copa"]),
        *runs_of(1.0, status="running", model={"name": "other"}),
    ]
    notes = " ".join(methods_table(group_runs(runs)).notes)
    assert "different orders" in notes
    assert "different base models" in notes
    assert "1 run not finished yet" in notes


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@x", "\tx", " =1", "\n=1", "\u00a0@x", "\uff1d1", HOSTILE]
)
def test_no_spreadsheet_takes_a_name_for_a_formula(text: str):
    (row,) = list(csv.reader(io.StringIO(Table("s", "t", ["head"], [[Cell(text)]]).csv())))[1:]
    assert not row[0].lstrip().startswith(("=", "+", "-", "@", "\uff1d")) and row[0][0] not in "\t\r"


@pytest.mark.parametrize("text", ["a,b\n'c\"", "3 = 1 + 2", "a@b", ""])
def test_other_texts_stay_as_they_are_in_csv(text: str):
    (row,) = list(csv.reader(io.StringIO(Table("s", "t", ["head", "x"], [[Cell(text), Cell("y")]]).csv())))[
        1:
    ]
    assert row == [text, "y"]


def test_a_negative_number_stays_a_number_in_csv():
    table = Table("s", "t", ["x"], [[Cell("\u22121.5", -1.5, "0.2")]])
    assert table.csv().splitlines()[1] == "-1.5,0.2"


def test_signs_of_markup_are_escaped():
    table = Table("s", "50% of a_b", ["a|b & <i>"], [[Cell(r"x_{1}\%$&#~^ → 2")]], notes=["two\nlines_"])
    assert r"a\|b & &lt;i&gt;" in table.md()
    assert "- two lines" in table.md()
    tex = table.tex()
    assert r"x\_\{1\}\textbackslash{}\%\$\&\#\textasciitilde{}\textasciicircum{} $\rightarrow$ 2 \\" in tex
    assert "% two lines_" in tex


def test_totals_come_last():
    table = Table("s", "t", ["a", "n"], [[Cell("x"), Cell("1", 1.0)]], total=[Cell("all"), Cell("1", 1.0)])
    assert table.csv().splitlines() == ["a,n", "x,1", "all,1"]


def test_all_formats_are_written(tmp_path: Path):
    table = Table("name", "t", ["a"], [[Cell(HOSTILE)]])
    files = write_tables([table], tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["name.csv", "name.md", "name.tex"]
    assert all(file.read_text("utf-8") for file in files)

"""`kifuse report` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kifuse.cli import app
from tests.unit.reporting.measured_runs import kif_record, write_run
from tests.unit.reporting.runs import make_record


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/kif"), kif_record(tasks=["a", "b"]))
    write_run(Path("runs/plain"), make_record("sequential", ["a", "b"]))
    return Path("runs")


def test_the_page_of_a_run_is_written_into_its_folder(runs: Path):
    result = call(runs / "kif")
    assert result.exit_code == 0, result.output
    assert "runs/kif/report.html" in result.output
    assert "kif" in (runs / "kif" / "report.html").read_text("utf-8")


def test_several_runs_make_one_page_beside_them_and_leave_theirs_alone(runs: Path):
    result = call(runs / "plain", runs / "kif")
    assert result.exit_code == 0, result.output
    assert "2 methods" in (runs / "report.html").read_text("utf-8")
    assert not (runs / "kif" / "report.html").exists()


def test_figures_and_tables_are_written_where_asked(runs: Path):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed (kifuse[figures])")
    result = call(runs / "plain", "--figures", "f", "--tables", "t", "--output", "page.html")
    assert result.exit_code == 0, result.output
    assert {file.suffix for file in Path("f").iterdir()} == {".png", ".svg", ".pdf"}
    assert {file.name for file in Path("t").iterdir()} >= {"scores.csv", "methods.md", "tasks.tex"}
    assert Path("page.html").is_file()


def test_a_folder_as_output_gets_the_page(runs: Path):
    assert call(runs / "kif", "-o", runs).exit_code == 0
    assert (runs / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], "no such run"),
        (["runs"], "holds no run"),
        (["runs/kif", "--output", "runs/kif/record.json"], "--output"),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(runs: Path, arguments: list[str], expected: str):
    before = (runs / "kif" / "record.json").read_bytes()
    result = call(*arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output
    assert (runs / "kif" / "record.json").read_bytes() == before


def test_a_page_needs_no_torch_and_no_converter(runs: Path):
    code = (
        "import sys\nfrom kifuse.cli import app\n"
        "app(['report', 'runs/kif', 'runs/plain'], standalone_mode=False)\n"
        "heavy = ('torch', 'transformers', 'vl_convert', 'numpy')\n"
        "print('IMPORTED', *[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED"

"""A page that can be shown to others: no text of any example on it, and no path of the machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kifuse.cli import app
from kifuse.reporting.page import comparison_page, run_page
from kifuse.reporting.run_groups import Run, open_run, open_runs
from kifuse.reporting.shareable import without_paths
from tests.unit.reporting.measured_runs import kif_record, write_run
from tests.unit.reporting.runs import write_predictions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose examples, data and model can be told by their words wherever they turn up."""
    record = kif_record(tasks=["a", "b", "c"])
    record.config = {
        **record.config,
        "data": {"path": "/srv/sekret/customers", "benchmark": None},
        "watch": {"tasks": ["/srv/sekret/general"], "when": "each"},
        "output": "/srv/sekret/runs/kif",
    }
    record.config["model"] = {**record.config.get("model", {}), "name": "../sekret/models/mine"}
    record.model = {**record.model, "name": "../sekret/models/mine"}
    folder = write_run(tmp_path / "sekret" / "first-run", record)
    for after in (1, 3):
        write_predictions(
            folder, after, "a", {f"sekret question {i}": (i + after) % 2 == 0 for i in range(8)}
        )
    return folder


def test_no_text_of_an_example_is_on_it_but_their_number_is(folder: Path):
    whole, shared = run_page(open_run(folder)), run_page(open_run(folder), texts=False)
    for text in ("sekret question", "example 1 of 2: is it good or bad?"):
        assert text in whole
        assert text not in shared
    lost = re.search(r"Lost \((\d+)\)", whole)
    assert lost and f'<dt>Lost</dt><dd><span class="value">{lost[1]}</span>' in shared
    assert "--no-examples" in shared


def test_paths_are_cut_to_their_last_part(folder: Path):
    shared = run_page(open_run(folder), texts=False)
    assert "sekret" not in shared
    assert '<dd dir="auto">customers</dd>' in shared
    assert "base = &#39;mine&#39;" in shared
    assert "path/of/the/run/adapters/after-3" in shared


def test_the_predictions_being_gone_is_said_without_their_place(folder: Path):
    for file in folder.glob("predictions/*/*"):
        file.unlink()
    shared = run_page(open_run(folder), texts=False)
    assert "The predictions of the run are missing." in shared
    assert "sekret" not in shared


def test_a_comparison_links_no_page_that_holds_examples(folder: Path, tmp_path: Path):
    other = write_run(tmp_path / "sekret" / "second", kif_record(tasks=["a", "b", "c"], drop=9.0))
    for each in (folder, other):
        (each / "report.html").write_text("with examples", encoding="utf-8")
    runs = open_runs([folder, other])
    assert "sekret/first-run/report.html" in comparison_page(runs, tmp_path)
    shared = comparison_page(runs, tmp_path, texts=False)
    assert "report.html" not in shared
    assert "sekret" not in shared
    assert "first-run" in shared


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("google-t5/t5-large", "google-t5/t5-large"),
        ("/home/me/models/mine", "mine"),
        ("./mine", "mine"),
        ("~/mine", "mine"),
        ("data/models/mine", "mine"),
        ("C:\\models\\mine", "mine"),
    ],
)
def test_a_folders_name_is_cut_and_a_hub_id_is_not(name: str, shown: str):
    record = kif_record()
    record.model = {**record.model, "name": name}
    run = Run(record)
    assert without_paths(run).record.model["name"] == shown
    assert run.record.model["name"] == name


def test_the_command_writes_such_a_page(folder: Path, tmp_path: Path):
    page = tmp_path / "to-show.html"
    result = CliRunner().invoke(app, ["report", str(folder), "--no-examples", "--output", str(page)])
    assert result.exit_code == 0, result.output
    assert "sekret" not in page.read_text("utf-8")

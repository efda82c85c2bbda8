"""The one table of all runs of a grid: from their folders, in a terminal and where nobody watches."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from kifuse.comparing.run_table import JobState, RunTable
from tests.unit.reporting.runs import make_record


def runs_in(folder: Path) -> list[JobState]:
    """One run that has learned two tasks, one that was lost once, one that waits."""
    runs = [JobState(name, folder / name) for name in ("replay, seed 0", "kif, seed 0", "kif, seed 1")]
    for run in runs[:2]:
        run.send(1)
        run.look()
        make_record().save(run.folder)
        (run.folder / "log.txt").write_text(
            "2026-11-30T10:00:00Z  colour, step 3: loss 1.5\n", encoding="utf-8"
        )
        run.look()
    (runs[0].folder / "log.txt").write_text("2026-11-30T10:00:09Z  fruit [bold]\n" * 2, encoding="utf-8")
    runs[1].lose("ended with exit code -9")
    runs[1].send(2)
    return runs


def test_a_terminal_shows_every_cell_with_how_far_it_is(tmp_path: Path) -> None:
    out = io.StringIO()
    runs = runs_in(tmp_path)
    table = RunTable(Console(file=out, force_terminal=True, width=120, color_system=None), runs)
    with table.live():
        table.look()
        runs[0].settle("out of memory (log: log.txt)")
    text = out.getvalue()
    learned, tasks = runs[0].learned, runs[0].tasks
    assert tasks and f"{learned}/{tasks}" in text
    assert "1 failed, 1 sent, 1 waiting" in text and "sent, try 2" in text
    assert "fruit [bold]" in text and "out of memory" in text  # a log steers nothing


def test_where_nobody_watches_a_change_is_a_line(tmp_path: Path) -> None:
    out = io.StringIO()
    runs = runs_in(tmp_path)
    table = RunTable(Console(file=out, width=200), runs)
    with table.live():
        table.look()
        table.look()
        runs[0].settle(None)
        table.look()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3, lines
    assert "replay, seed 0: running" in lines[0] and "tasks learned" in lines[0]
    assert "kif, seed 0: sent" in lines[1] and "(sent again: ended with exit code -9)" in lines[1]
    assert "replay, seed 0: finished" in lines[2]

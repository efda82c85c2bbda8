"""What a person sees while a run goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kifuse import live
from kifuse.live import ConsoleProgress
from kifuse.training.evaluator import Cell
from kifuse.training.progress import Plan


class Clock:
    """Ten seconds pass whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[ConsoleProgress, io.StringIO]:
    monkeypatch.setattr(live, "time", Clock())
    out = io.StringIO()
    return ConsoleProgress(Console(file=out, width=200)), out


def test_lines_say_task_step_loss_and_time_left(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    progress.begin("replay", Plan(steps=100, scored=0), Plan(0, 0))
    for step in range(1, 51):
        progress.step("colours", step, 100, None)
        progress.step("colours", step, 100, 0.5)
    last = [line for line in out.getvalue().splitlines() if "left" in line][-1]
    assert "replay: colours, step" in last and "/100" in last and "loss 0.50" in last
    # half of the steps took about as long as the other half will
    minutes, seconds = last.split("about ")[1].split(" left")[0].split(":")
    elapsed = live.time.monotonic()  # type: ignore[attr-defined]
    assert int(minutes) * 60 + int(seconds) == pytest.approx(elapsed, rel=0.15)


def test_work_of_later_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    for later in (0, 1):
        monkeypatch.setattr(live, "time", Clock())
        out = io.StringIO()
        progress = ConsoleProgress(Console(file=out, width=200), runs_left=later)
        progress.begin("replay", Plan(steps=10, scored=0), Plan(0, 0))
        for step in range(1, 9):
            progress.step("colours", step, 10, None)
        line = [line for line in out.getvalue().splitlines() if "left" in line][-1]
        minutes, seconds = line.split("about ")[1].split(" left")[0].split(":")
        left.append(int(minutes) * 60 + int(seconds))
    assert left[1] > left[0] + 60


def test_a_score_says_what_changed(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    progress.begin("replay", Plan(10, 10), Plan(0, 0))
    progress.scored(1, "colours", Cell(80.0, 100.0, 5, 1.0))
    progress.scored(2, "colours", Cell(55.0, 100.0, 5, 1.0))
    assert "after task 1: colours 80.0\n" in out.getvalue()
    assert "after task 2: colours 55.0 (-25.0)\n" in out.getvalue()


def test_names_are_never_read_as_markup(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    progress.begin("[red]x", Plan(10, 10), Plan(0, 0))
    progress.scored(1, "[bold]colours[/bold]", Cell(80.0, None, 5, 1.0))
    assert "[bold]colours[/bold]" in out.getvalue() and "[red]x" in out.getvalue()

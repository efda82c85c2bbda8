"""What a person sees while a run goes on."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Span, Text

from kifuse.methods.kif import KIF
from kifuse.methods.recurrent_kif import RecurrentKIF
from kifuse.running.progress import Plan, RowScore
from kifuse.running.trainer_listener import Watcher
from kifuse.terminal import progress as terminal_progress
from kifuse.terminal.progress import ConsoleProgress
from kifuse.terminal.view import View, row_text


class Clock:
    """Ten seconds pass whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[ConsoleProgress, io.StringIO]:
    monkeypatch.setattr(terminal_progress, "time", Clock())
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
    elapsed = terminal_progress.time.monotonic()  # type: ignore[attr-defined]
    assert int(minutes) * 60 + int(seconds) == pytest.approx(elapsed, rel=0.15)


def test_work_of_later_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    for later in (0, 1):
        monkeypatch.setattr(terminal_progress, "time", Clock())
        out = io.StringIO()
        progress = ConsoleProgress(Console(file=out, width=200), runs_left=later)
        progress.begin("replay", Plan(steps=10, scored=0), Plan(0, 0))
        for step in range(1, 9):
            progress.step("colours", step, 10, None)
        line = [line for line in out.getvalue().splitlines() if "left" in line][-1]
        minutes, seconds = line.split("about ")[1].split(" left")[0].split(":")
        left.append(int(minutes) * 60 + int(seconds))
    assert left[1] > left[0] + 60


ROW = (
    RowScore("fruit", 90.0, 70.5, True),
    RowScore("colours", 55.0, -25.0, True),
    RowScore("weather", 12.0, None, False),
)


def test_a_row_says_what_changed_for_each_task(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    progress.begin("replay", Plan(10, 10), Plan(0, 0))
    progress.row(1, [RowScore("colours", 80.0, None, True)])
    progress.row(2, ROW)
    assert "after task 1: colours 80.0\n" in out.getvalue()
    expected = "after task 2: fruit 90.0 (+70.5), colours 55.0 (-25.0), weather 12.0 before its training\n"
    assert expected in out.getvalue()


def test_gains_and_losses_differ_in_colour_as_well() -> None:
    styles = {str(span.style): text for text, span in _spans(row_text(2, ROW))}
    assert styles["green"] == " (+70.5)" and styles["red"] == " (-25.0)"


def _spans(text: Text) -> list[tuple[str, Span]]:
    return [(text.plain[span.start : span.end], span) for span in text.spans]


def test_names_are_never_read_as_markup(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    name = "[bold]colours[/bold]"
    progress.begin("[red]x", Plan(10, 10), Plan(0, 0))
    progress.row(1, [RowScore(name, 80.0, None, True)])
    assert name in out.getvalue() and "[red]x" in out.getvalue()
    view = View(method="[red]x", tasks=(name,), current=name, doing="step 1/2", news=f"fused {name}")
    shown = _rendered(view, 80)
    assert shown.count(name) == 3 and "[red]x" in shown


def test_a_message_moves_no_cursor(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    progress.say("before\x1b[2Jafter\rover")
    assert "before after over" in out.getvalue() and "\x1b" not in out.getvalue()


def _rendered(view: View, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width, height=40)
    console.print(view)
    console.file.flush()
    return raw.getvalue().decode(encoding)


def test_the_time_left_for_a_task_counts_memory_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(terminal_progress, "time", clock)
    progress = ConsoleProgress(Console(file=io.StringIO(), width=200))
    progress.begin("replay", Plan(steps=200, scored=0), Plan(0, 0))
    progress.training("colours", 200)  # 100 steps, each with a memory step
    for step in range(1, 51):
        progress.passes(2 * step)
        progress.step("colours", step, 100, None)
    first, spent = progress.view.task_left, clock.now
    assert first == pytest.approx(spent, rel=0.1)
    assert progress.view.run_left == pytest.approx(spent, rel=0.1)
    # half of the task again after a jump: what an earlier start did took no time here
    progress = ConsoleProgress(Console(file=io.StringIO(), width=200))
    progress.begin("replay", Plan(steps=400, scored=0), Plan(200, 0))
    before = clock.now
    progress.training("colours", 200)
    for step in range(51, 76):
        progress.passes(2 * step)
        progress.step("colours", step, 100, None)
    spent = clock.now - before
    assert progress.view.task_left == pytest.approx(spent, rel=0.15)
    assert progress.view.run_left == pytest.approx(spent, rel=0.15)


def test_work_after_the_last_step_counts_too() -> None:
    progress = ConsoleProgress(Console(file=io.StringIO(), width=200))
    progress.begin("kif-m", Plan(steps=10, scored=100), Plan(0, 0))
    progress.training("colours", 10)
    for step in range(1, 5):
        progress.passes(step)
        progress.step("colours", step, 4, None)
    progress.passes(10)
    progress.scoring("colours", 100, 100)
    assert progress.done == pytest.approx(progress.total)


@pytest.mark.parametrize("width", [30, 60, 200])
@pytest.mark.parametrize("tasks", [1, 15])
def test_the_view_fits_the_terminal(width: int, tasks: int) -> None:
    names = tuple(f"{i:02d}-a-rather-long-name" for i in range(tasks))
    view = View(
        method="(1/2) recurrent-kif",
        tasks=names,
        learned=tasks // 2,
        current=names[tasks // 2],
        doing="step 3/40",
        loss=0.4123,
        rate=1e-3,
        share=0.5,
        task_left=75.0,
        run_left=3725.0,
        news="4 in this task",
    )
    shown = _rendered(view, width)
    assert max(len(line) for line in shown.splitlines()) <= width
    flat = " ".join(shown.split())
    for text in (f"▸ {names[tasks // 2]}", "step 3/40", "loss 0.41", "4 in this task"):
        assert text in flat
    if width >= 60:
        assert all(t in flat for t in ("rate 1.0e-03", "1:15 left for the task", "about 1:02:05 left"))
    if tasks == 15:
        assert "4 before" in flat and "4 more" in flat and "✓ 06" in flat and "· 08" in flat


def test_the_view_needs_no_unicode() -> None:
    shown = _rendered(View(method="kif", tasks=("a", "b", "c"), learned=1, current="b"), 60, "ascii")
    assert "+ a" in shown and "> b" in shown and "- c" in shown


@pytest.mark.parametrize(("term", "live_part"), [("xterm", True), ("dumb", False)])
def test_only_a_terminal_that_moves_its_cursor_gets_the_live_view(
    monkeypatch: pytest.MonkeyPatch, term: str, live_part: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out, width=60, height=20, force_terminal=True))
    progress.stream(["colours", "fruit"], 0)
    progress.begin("kif", Plan(10, 10), Plan(0, 0))
    try:
        assert (progress.live is not None) is live_part
        progress.step("colours", 1, 5, None)
        progress.row(1, ROW)
    finally:
        progress.stop()
    assert ("\x1b[?25l" in out.getvalue()) is live_part  # hides the cursor
    assert progress.live is None and "after task 1:" in out.getvalue()


def test_a_quiet_console_shows_nothing() -> None:
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out, width=60, force_terminal=True, quiet=True))
    progress.begin("kif", Plan(10, 10), Plan(0, 0))
    progress.row(2, ROW)
    Watcher(progress, "fruit", KIF.shown).heard({"kind": "fusion", "step": 5, "kept": 1})
    progress.finish()
    assert out.getvalue() == "" and progress.live is None


def test_fusions_are_said_in_short(told: tuple[ConsoleProgress, io.StringIO]) -> None:
    progress, out = told
    progress.begin("kif", Plan(10, 10), Plan(0, 0))
    kif, rounds = (Watcher(progress, "fruit", method.shown) for method in (KIF, RecurrentKIF))
    rounds.on_log(None, SimpleNamespace(global_step=4), None, logs={"fusions": 2, "loss": 0.5})
    assert progress.view.news == "fruit, step 4: 2 fusions in this task"
    kif.heard({"kind": "importance", "step": 8, "skipped_steps": 1})
    cases = {"units": 9, "kept": 1, "overwritten": 2, "shared": 3, "neither": 3}
    kif.heard({"kind": "fusion", "step": 8, **cases, "mean_weight_of_previous": 0.25})
    rounds.heard({"kind": "fusions", "step": 9, "rounds": 4, "steps": [2, 4, 6, 8], "mask_overlap": 0.061})
    kif.heard({"kind": "fusion", "step": 9, "mean_weight_of_previous": "of a method of one's own"})
    rounds.heard({"kind": "fusions", "step": 10, "rounds": 1})
    kif.heard({"kind": "replay stage", "step": 11, "epochs": 8, "frozen_share": 0.25})
    said = [line.strip() for line in out.getvalue().splitlines() if "fruit" in line]
    assert said == [
        "fruit, step 8: fused, 1 kept, 2 overwritten, 3 shared, 3 neither, "
        "weight of the old model 0.25 on average",
        "fruit, step 9: 4 fusions, both masks on 6.1% of the parameters",
        "fruit, step 9: fused",
        "fruit, step 10: 1 fusion",
        "fruit, step 11: replayed the memory 8 times, 25% of the parameters frozen",
    ]

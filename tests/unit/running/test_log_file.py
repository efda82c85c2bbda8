"""The log of a run: plain lines with their time, appended, and never in a run's way."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from kifuse.answering.evaluator import Cell
from kifuse.errors import RunError
from kifuse.running.log_file import RunLog
from kifuse.running.progress import Plan, Progress, RowScore

LINE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z  (.*)")


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.said: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if name in vars(Progress) and not name.startswith("_"):
            self.calls.append(name)
        return super().__getattribute__(name)

    def say(self, text: str) -> None:
        self.said.append(text)


def lines(folder: Path) -> list[str]:
    """The log without the times."""
    found = [LINE.fullmatch(line) for line in (folder / "log.txt").read_text("utf-8").splitlines()]
    assert all(found)
    return [match[1] for match in found if match]


def test_everything_is_passed_on_and_written(tmp_path: Path) -> None:
    inner = Told()
    log = RunLog(tmp_path, inner)
    with log.writing("beginning"):
        log.say("a note")
        log.stream(["colours", "fruit"], 1)
        log.begin("kif", Plan(10, 5), Plan(4, 0))
        log.training("fruit", 6)
        log.passes(1)
        log.step("fruit", 1, 3, None)
        log.logged("fruit", 1, {"loss": 0.123456789, "learning_rate": 1e-4})
        log.event("fruit", "fusions", 3, {"rounds": 20, "steps": list(range(1, 21)), "mask_overlap": 0.25})
        log.method_says("fruit", 3, "20 fusions", True)
        log.scoring("fruit", 2, 2)
        log.scored(2, "fruit", Cell(50.0, 100.0, 2, 0.1))
        log.row(2, [RowScore("fruit", 50.0, None, True), RowScore("colours", 60.0, -12.34, True)])
        assert log.saved(tmp_path) is None
        log.finish()
    public = {name for name in vars(Progress) if not name.startswith("_")}
    assert set(inner.calls) == public and inner.said == ["a note"]
    assert lines(tmp_path) == [
        "beginning",
        "a note",
        "tasks: colours, fruit; 1 learned",
        "kif: 6 steps, 5 answers to score",
        "fruit: training, 6 forward and backward passes",
        "fruit, step 1: loss 0.123457, learning_rate 0.0001",
        "fruit, step 3: fusions: rounds 20, steps [20 values, last 20], mask_overlap 0.25",
        "after task 2: fruit 50.00, 100.0% of the outputs are labels; 2 examples in 0.1 seconds",
        "since last scored: colours -12.3",
        "finished",
    ]


def test_a_second_start_appends(tmp_path: Path) -> None:
    for text in ("first", "second"):
        log = RunLog(tmp_path, Progress())
        log.say("outside nothing is written")
        with log.writing(text):
            pass
    assert lines(tmp_path) == ["first", "second"]


def test_it_is_plain_text_and_one_line_each(tmp_path: Path) -> None:
    log = RunLog(tmp_path, Progress())
    with log.writing():
        log.say("red \x1b[31mtext\x1b[0m\rand\x07 a bell, a lone \ud800")
        log.say("two\nlines")
    text = (tmp_path / "log.txt").read_text("utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "red  text  and  a bell, a lone ?" in text
    assert text.splitlines()[1].endswith("  two") and text.splitlines()[2] == "    lines"


def test_how_it_ended_is_the_last_line(tmp_path: Path) -> None:
    inner = Told()
    log = RunLog(tmp_path, inner)
    for error in (RunError("the adapter is damaged."), KeyboardInterrupt(), ZeroDivisionError("by zero")):
        with pytest.raises(type(error)), log.writing():
            raise error
    text = (tmp_path / "log.txt").read_text("utf-8")
    assert "  failed: the adapter is damaged.\n" in text and "  stopped by the user\n" in text
    assert "  failed: Traceback" in text and text.endswith("    ZeroDivisionError: by zero\n")
    assert inner.calls.count("stop") == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no name on this system")
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "log.txt"
    place.mkdir() if kind == "folder" else os.mkfifo(place)
    inner = Told()
    log = RunLog(tmp_path, inner)
    for _ in range(2):
        with log.writing("beginning"):
            log.say("hello")
    assert inner.said[1:] == ["hello", "hello"]
    assert str(place) in inner.said[0] and "the run continues without a log" in inner.said[0]


def test_a_disk_that_fills_up_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Told()
    log = RunLog(tmp_path, inner)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with log.writing():
        monkeypatch.setattr(os, "write", full)
        log.say("first")
        log.say("second")
    assert inner.said[1:] == ["first", "second"] and "No space left on device" in inner.said[0]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    inner = Told()
    log = RunLog(tmp_path, inner, writes=False)
    with log.writing("beginning"):
        log.say("hello")
    assert inner.said == ["hello"] and not list(tmp_path.iterdir())


def test_warnings_are_written_and_still_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("kifuse.driving.finite_guard")
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a program that has set up no logging
    with RunLog(tmp_path, Progress()).writing():
        logger.warning("step %d skipped", 3)
        logger.info("of no interest")
    assert lines(tmp_path) == ["warning (kifuse.driving.finite_guard): step 3 skipped"]
    assert capsys.readouterr().err == "step 3 skipped\n"
    logger.warning("afterwards")
    assert capsys.readouterr().err == "afterwards\n" and len(lines(tmp_path)) == 1


def test_a_warning_is_shown_once_where_logging_is_set_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with RunLog(tmp_path, Progress()).writing():
        logging.getLogger("kifuse").warning("look")
    assert capsys.readouterr().err == "" and caplog.messages == ["look"]

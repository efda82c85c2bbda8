"""The learner from the shell: learn, ask, evaluate, history and rollback, their JSON and their exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kifuse import ContinualLearner, DataError, RunRecord
from kifuse.cli import app
from kifuse.cli.opened_learner import GATE
from kifuse.terminal.safe_console import without_control
from tests.learners import Make
from tests.unit.test_cli import shell

pytestmark = pytest.mark.usefixtures("quick")


SET = ("precision=fp32", "adapter.rank=2", "adapter.alpha=8", "adapter.dropout=0.0")
SETTINGS = [f"--set=model.{each}" for each in SET] + [
    "--set=training.learning_rate=0.01",
    "--set=training.epochs=1",
    "--set=training.batch_size=4",
    "--set=evaluation.max_new_tokens=2",
    "--set=data.max_input=64",
    "--set=data.max_target=8",
]


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)


def result(*arguments: object, code: int = 0) -> Any:
    """What a verb prints as JSON."""
    found = call(*arguments, "--json")
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


class Desk:
    """A learner of two tasks that was made from the shell, and what it answered after the first."""

    def __init__(self, folder: Path, model: Path, stream: Path) -> None:
        self.folder, self.stream = folder, stream
        self.names = sorted(path.name for path in stream.iterdir())[:2]
        self.of_first = ["--task", self.names[0]]
        self.command = ["--model", model, "--method", "replay", *SETTINGS]
        self.reports = [result("learn", folder, stream / self.names[0], *self.command)]
        self.early = self.ask("early")
        self.reports.append(result("learn", folder, stream / self.names[1]))
        self.late = self.ask("early")

    def ask(self, *texts: str, **options: Any) -> list[str]:
        learner = ContinualLearner.load(self.folder, progress=False)
        return learner.generate(list(texts), task=self.names[0], **options)


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder_llama: Path, tiny_stream: Path, quick: None
) -> Desk:
    return Desk(tmp_path_factory.mktemp("shell") / "desk", tiny_folder_llama, tiny_stream)


def test_the_first_task_makes_the_learner_and_the_next_ones_go_on(desk: Desk):
    first, second = desk.reports
    assert (first["task"], second["task"]) == tuple(desk.names) and first["accepted"] and second["accepted"]
    assert set(second["before"]) == set(second["after"]) == set(desk.names)
    assert Path(second["adapter"], "adapter_model.safetensors").is_file()
    assert ContinualLearner.load(desk.folder, progress=False).tasks == desk.names


def test_the_same_command_only_reports(desk: Desk):
    before = (desk.folder / "record.json").read_bytes()
    again = result("learn", desk.folder, desk.stream / desk.names[1], *desk.command)
    assert again == desk.reports[1]
    assert (desk.folder / "record.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set=training.epochs=7"], "training.epochs (1 there, 7 here)"),
        (["--method", "kif"], "method.name ('replay' there, 'kif' here)"),
        (["--column", "question"], "expected FIELD=COLUMN"),
        (["--max-forgetting", "-1"], "max_forgetting: found -1"),
        (["--min-score", "101"], "min_score: found 101.0, expected points from 0 to 100"),
        (["--set=model=kif"], "--set model: found 'kif', expected the key of a section"),
        (["--method", "kif", "--set=method.name=replay"], "Remove one"),
    ],
)
def test_what_differs_from_the_record_or_is_no_setting_is_refused(
    desk: Desk, options: list[str], message: str
):
    found = call("learn", desk.folder, desk.stream / desk.names[1], *options)
    assert found.exit_code == 2 and message in found.stderr


def test_a_new_learner_needs_a_model_and_a_missing_one_says_how_to_begin(tmp_path: Path, desk: Desk):
    found = call("learn", tmp_path / "new", desk.stream / desk.names[0])
    assert found.exit_code == 2 and "--model" in found.stderr and not (tmp_path / "new").exists()
    for verb in (["ask", tmp_path, "x"], ["evaluate", tmp_path], ["history", tmp_path]):
        found = call(*verb)
        assert found.exit_code == 2 and "kifuse learn" in found.stderr


def test_a_task_that_reaches_too_little_is_rolled_back_with_an_exit_code_of_its_own(
    desk: Desk, tmp_path: Path
):
    rows = tmp_path / "third.jsonl"
    rows.write_text("".join(json.dumps({"input": f"{i}?", "output": "never"}) + "\n" for i in range(8)))
    for _ in range(2):  # the second time it is not trained again
        refused = result("learn", desk.folder, rows, "--min-score", 99, code=GATE)
        assert not refused["accepted"] and "99 are asked for" in refused["reason"]
        assert Path(refused["adapter"], "adapter_model.safetensors").is_file()
    learner = ContinualLearner.load(desk.folder, progress=False)
    assert learner.tasks == desk.names and learner.min_score == 99
    assert desk.ask("early") == desk.late
    history = result("history", desk.folder)
    assert [entry["event"] for entry in history.pop("history")] == ["learned", "learned", "refused"]
    now = {"learned": desk.names, "watched": [], "max_forgetting": None, "min_score": 99, "repair": False}
    assert history == {"model": desk.command[1].__fspath__(), "method": "replay", **now}


def test_a_limit_that_cannot_be_checked_is_refused(make: Make):
    with pytest.raises(DataError, match="no test examples, so min_score"):
        make(min_score=50).learn([{"input": "a", "output": "b"}], name="one")


def test_an_earlier_state_answers_as_it_did_and_the_present_one_stays(desk: Desk):
    states = ["--after", desk.names[0], "--after", "now"]
    (found,) = result("ask", desk.folder, *desk.of_first, "early", *states)
    answers = {desk.names[0]: desk.early[0], "now": desk.late[0]}
    assert found == {"question": "early", "answers": answers}
    learner = ContinualLearner.load(desk.folder, progress=False)
    weights = {n: p.clone() for n, p in learner.model.named_parameters() if p.requires_grad}
    task = desk.names[0]
    assert learner.generate(["early"], task=task, after=1) == desk.early
    assert learner.generate(["early"], task=task, after=desk.names[1]) == desk.late
    assert learner.generate(["early"], task=task) == desk.late
    assert all(p.equal(weights[n]) for n, p in learner.model.named_parameters() if p.requires_grad)


def test_questions_come_from_arguments_a_file_or_stdin(desk: Desk, tmp_path: Path):
    lines = tmp_path / "questions.txt"
    lines.write_text("early\n\nlate\n", "utf-8")
    rows = tmp_path / "questions.jsonl"
    rows.write_text('{"input": "early"}\n{"messages": [{"role": "user", "content": "early"}]}\n', "utf-8")
    one = call("ask", desk.folder, *desk.of_first, "early", "-q").stdout
    assert one == f"{without_control(desk.late[0])}\n"
    assert call("ask", desk.folder, *desk.of_first, "-q", stdin="early\n").stdout == one
    marked = tmp_path / "marked.txt"  # of an editor of Windows, and with a line break that ends no line
    marked.write_bytes("\ufeffearly\r\none\u2028two\r\n".encode())
    for file, count in ((lines, 2), (rows, 2), (marked, 2)):
        found = result("ask", desk.folder, *desk.of_first, "--file", file)
        assert len(found) == count and found[0]["answers"]["now"] == desk.late[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", ":1: not valid JSON"),
        ("[1]", "expected a row"),
        ('{"question": 3}', "entry 1"),
    ],
)
def test_a_file_without_questions_is_refused(desk: Desk, tmp_path: Path, content: str, message: str):
    file = tmp_path / "questions.jsonl"
    file.write_text(content, "utf-8")
    found = call("ask", desk.folder, *desk.of_first, "--file", file)
    assert found.exit_code == 2 and message in found.stderr


def test_a_folder_that_cannot_be_is_no_learner(desk: Desk):
    for folder in ("~nobody-has-this-name/desk", "x" * 300):
        found = call("ask", folder, "hello")
        assert found.exit_code == 2 and "found no learner" in found.stderr, found.output


@pytest.mark.parametrize("change", [{"model": "x"}, {"method": None}, {"data": [1]}, {"model": {}}])
def test_a_configuration_on_record_that_is_none_is_refused(
    desk: Desk, tmp_path: Path, change: dict[str, Any]
):
    copy = shutil.copytree(desk.folder, tmp_path / "copy")
    record = RunRecord.load(copy)
    record.config |= change
    record.save(copy)
    found = call("ask", copy, "hello")
    assert found.exit_code == 2 and f"record.json: config.{next(iter(change))}" in found.stderr, found.output


def test_a_dialogue_goes_on_until_an_empty_line(desk: Desk):
    found = call("ask", desk.folder, "--chat", "-q", stdin="hello\nagain\n\nnot asked\n")
    learner = ContinualLearner.load(desk.folder, progress=False)
    messages = [{"role": "user", "content": "hello"}]
    (first,) = learner.generate([messages])
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "again"}]
    (second,) = learner.generate([messages])
    assert found.exit_code == 0
    assert found.stdout == "".join(f"model: {without_control(said)}\n" for said in (first, second))


def test_scores_are_those_on_record_and_too_low_ones_have_the_exit_code_of_a_gate(desk: Desk, tmp_path: Path):
    assert result("evaluate", desk.folder) == desk.reports[1]["after"]
    early = result("evaluate", desk.folder, desk.names[0], "--after", desk.names[0])
    assert early == desk.reports[0]["after"]
    assert set(result("evaluate", desk.folder, "--min-score", 100, code=GATE)) == set(desk.names)
    rows = tmp_path / "general.jsonl"
    rows.write_text("".join(json.dumps({"input": f"{i}?", "output": "never"}) + "\n" for i in range(3)))
    assert result("evaluate", desk.folder, rows) == {"general": 0.0}


def test_history_needs_no_torch(desk: Desk):
    found = shell("history", desk.folder)
    assert found.returncode == 0 and found.stdout.splitlines()[-1] == "IMPORTED"
    assert all(name in found.stdout for name in desk.names)


def test_rollback_goes_back_and_says_what_is_left(desk: Desk, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(desk.folder, folder)
    assert result("rollback", folder, "--to", desk.names[0])["tasks"] == desk.names[:1]
    early = ContinualLearner.load(folder, progress=False).generate(["early"], task=desk.names[0])
    assert early == desk.early
    assert result("rollback", folder, "--to", "0") == {"tasks": [], "adapter": None}
    found = call("rollback", folder, "--to", "nothing")
    assert found.exit_code == 2 and "no task 'nothing' was learned" in found.stderr


def test_commands_before_and_after_a_task(desk: Desk, tmp_path: Path):
    task = desk.stream / desk.names[1]
    stopped = call("learn", desk.folder, task, "--run-before", "exit 4")
    assert stopped.exit_code == 2 and "exit code 4; nothing was learned" in stopped.stderr
    said = tmp_path / "said"
    command = f'echo "$KIFUSE_TASK $KIFUSE_ACCEPTED $KIFUSE_ADAPTER" > {said}'
    assert call("learn", desk.folder, task, "-q", "--run-after", command).exit_code == 0
    assert said.read_text().split() == [desk.names[1], "1", str(desk.folder / "adapters" / "after-2")]
    # what was learned stays, and is told to a script as well
    report = result("learn", desk.folder, task, "--run-after", "echo said; exit 7", code=2)
    assert report == desk.reports[1]

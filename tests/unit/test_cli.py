"""The command line: what it prints, how it ends, and that it never imports more than it needs."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from kifuse.cli import app
from kifuse.errors import RunError

pytestmark = pytest.mark.usefixtures("no_bundled_model")

HEAVY = ("torch", "transformers", "datasets")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def shell(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs kifuse as a program; its last line on stdout says which heavy packages it imported."""
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('IMPORTED', *[m for m in {HEAVY!r} if m in sys.modules]))\n"
        "from kifuse.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks of 10 training, 2 validation and 3 test examples."""
    folder = tmp_path / "data"
    for task in ("colour", "shape"):
        (folder / task).mkdir(parents=True)
        for split, count in {"train": 10, "dev": 2, "test": 3}.items():
            rows = [
                {"input": f"{task} {split} {i}?", "output": "yes" if i % 2 else "no"} for i in range(count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def config(tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model:\n  name: smollm2-135m\ndata:\n  path: {data}\nmethod:\n  name: replay\n"
        f"training:\n  epochs: 2\noutput: {tmp_path / 'out'}\n",
        encoding="utf-8",
    )
    return path


class FakeRecord:
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> FakeRecord:
        if not folder.is_dir():
            raise RunError(f"{folder}: holds no run.")
        return cls()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for everything that trains; ``error`` is raised instead, what was asked is kept."""
    seen: dict[str, Any] = {"error": None}

    def run(config: Any, **more: Any) -> FakeRecord:
        seen["config"] = config
        if seen["error"]:
            raise seen["error"]
        return FakeRecord()

    def run_demo(output: Path | None, seed: int, methods: tuple[str, ...], console: Any) -> int:
        seen["demo"] = (output, seed, methods)
        if seen["error"]:
            raise seen["error"]
        console.print("shown")
        return 0

    class Progress:
        def __init__(self, console: Any) -> None:
            pass

        def finish(self) -> None:
            seen["closed"] = True

    stands = {
        "kifuse.page_refresh": {"run": run},
        "kifuse.demo": {"run_demo": run_demo},
        "kifuse.terminal.progress": {"ConsoleProgress": Progress},
        "kifuse.record.run_record": {"RunRecord": FakeRecord},
        "kifuse.reporting.terminal_tables": {
            "comparison_table": lambda records: f"compared {len(records)}",
            "matrix_table": lambda record: "matrix",
            "plain_table": lambda table: "table",
        },
        "kifuse.reporting.watched": {"watched_table": lambda record: None},
    }
    for name, members in stands.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def refused(result: Any, *expected: str) -> None:
    """The command ended with a message to the user and without a traceback."""
    assert result.exit_code == 2, result.output
    assert "error:" in result.output
    assert "Traceback" not in result.output
    for text in expected:
        assert text in result.output


def test_telling_what_there_is_imports_nothing_heavy() -> None:
    commands = [
        ["--help"],
        ["--version"],
        *([verb, "--help"] for verb in ("demo", "run", "validate", "table")),
    ]
    commands += [["ls", "--help"], *(["ls", kind] for kind in ("methods", "benchmarks", "models"))]
    code = (
        "import sys\nfrom kifuse.cli import app\n"
        f"for command in {[*commands, ['ls', 'methods', '--help']]!r}:\n"
        "    app(command, standalone_mode=False)\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    assert not heavy, (command, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 7


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, kifuse; assert not [m for m in {HEAVY!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_packages() -> None:
    from kifuse import __version__

    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"kifuse {__version__}\n")


@pytest.mark.parametrize("verb", [["demo"], ["run"], ["ls"], ["validate"], ["table"]])
def test_every_verb_shows_examples(verb: list[str]) -> None:
    result = call(*verb, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"kifuse {verb[0]} " in result.output


def test_the_lists_name_what_can_be_typed() -> None:
    assert all(
        name in call("ls", "methods").output
        for name in ("sequential", "kiflora", "recurrent-kif", "replay-free")
    )
    assert all(
        name in call("ls", "benchmarks").output for name in ("standard-cl", "long-sequence", "superni")
    )


def test_the_list_of_models_says_where_they_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIFUSE_CACHE", str(tmp_path))
    output = call("ls", "models").output
    assert "smollm2-135m will be, once it was used, a standard checkpoint in" in output
    folder = Path(output.partition("checkpoint in ")[2].splitlines()[0])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert f"smollm2-135m is a standard checkpoint in {folder}" in call("ls", "models").output


def test_an_unknown_verb_or_option_ends_with_2() -> None:
    for arguments in (
        ["rnu"],
        ["run", "--sed", "1"],
        ["ls", "method"],
        ["run", "--order", "first"],
        ["demo", "--seed", "-1"],
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_validate_says_what_would_run(config: Path, tmp_path: Path) -> None:
    result = call("validate", config)
    assert result.exit_code == 0, result.output
    assert "is valid" in result.output
    assert "replay (real replay)" in result.output
    rows = [line.split() for line in result.output.splitlines() if line.strip()[:1] in ("1", "2")]
    assert [(row[1], *row[-4:]) for row in rows] == [
        ("colour", "10", "2", "3", "3"),
        ("shape", "10", "2", "3", "3"),
    ]
    assert not (tmp_path / "out").exists()


def test_validate_refuses_a_kind_of_adapter_that_the_method_cannot_stack(config: Path) -> None:
    result = call("validate", config, "--set", "method.name=o-lora", "--set", "model.adapter.kind=dora")
    assert result.exit_code == 2
    assert "o-lora" in result.output and "dora" in result.output
    result = call("validate", config, "--set", "method.name=osf")
    assert result.exit_code == 2 and "model.adapter.kind" in result.output


def test_validate_counts_the_subsets_and_the_overrides(config: Path) -> None:
    result = call("validate", config, "--set", "data.train_examples=4", "--set", "training.epochs=10")
    rows = [line.split() for line in result.output.splitlines() if line.strip()[:1] in ("1", "2")]
    assert [row[-4:] for row in rows] == [["4", "2", "3", "5"], ["4", "2", "3", "5"]]


def test_validate_counts_joint_training_once(config: Path) -> None:
    result = call("validate", config, "--set", "method.name=joint")
    total = next(line.split() for line in result.output.splitlines() if "together" in line)
    assert total == ["together", "20", "4", "6", "5"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.epoch=2", "--set training.epoch: found the unknown key 'epoch'"),
        ("training.epochs=many", "--set training.epochs: found 'many' (text), expected a whole number"),
        ("memory.share=7", "--set memory.share: found 7, expected a number above 0 and at most 1"),
        ("method.name=replya", "Did you mean 'replay'?"),
        ("method.foo=1", "--set method.foo: found the unknown key 'foo'"),
        ("data.path=/nowhere", "--set data.path: found '/nowhere' (text), which is not there"),
        ("data.order=[colour, shap]", "Did you mean 'shape'?"),
        ("data.layout=superni", "superni"),
        ("training.epochs", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_refused(config: Path, setting: str, expected: str) -> None:
    refused(call("validate", config, "--set", setting), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found an empty file"),
        ("- a\n", "found the list ['a']"),
        ("model: [\n", "is not YAML"),
        (
            "model:\n  name: a\n  name: b\n",
            "run.yaml:3: model.name: found the key a second time (the first is in line 2)",
        ),
        ("modle: 1\n", "run.yaml:1: modle: found the unknown key 'modle'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "validate"])
def test_a_file_that_is_wrong_is_refused(config: Path, verb: str, text: str, expected: str) -> None:
    config.write_text(text, encoding="utf-8")
    refused(call(verb, config), expected)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for verb in ("run", "validate"):
        refused(call(verb, tmp_path / "none.yaml"), "found no such file")


def test_broken_data_is_refused_with_its_line(config: Path, data: Path) -> None:
    (data / "shape" / "train.jsonl").write_text(
        '{"input": "a", "output": "b"}\n{"input": \n', encoding="utf-8"
    )
    refused(call("validate", config), "train.jsonl:2")


def test_a_message_keeps_long_paths_whole_and_goes_to_stderr(tmp_path: Path) -> None:
    path = tmp_path / ("deep-" * 20) / ("folder-" * 20) / "none.yaml"
    done = shell("validate", path)
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == ["IMPORTED"]


def test_run_hands_the_resolved_configuration_over(
    engine: dict[str, Any], config: Path, tmp_path: Path
) -> None:
    result = call("run", config, "--seed", 3, "--output", tmp_path / "other", "--set", "training.epochs=4")
    assert result.exit_code == 0, result.output
    given = engine["config"]
    assert (given.training.seed, given.training.epochs, given.output) == (3, 4, tmp_path / "other")
    assert "matrix" in result.output
    assert "compared 1" in result.output
    assert f"Written to {tmp_path / 'other'}" in result.output.replace("\n", " ")
    assert engine["closed"]


def test_a_quiet_run_and_demo_print_nothing_but_errors(
    engine: dict[str, Any], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        for verb in (["run", config, "--quiet"], ["run", config, "-q"], ["demo", "--quiet"]):
            result = call(*verb)
            assert (result.exit_code, result.output) == (0, "")
        engine["error"] = RunError("the disk is full.")
        for verb in (["run", config, "--quiet"], ["demo", "--quiet"]):
            refused(call(*verb), "error: the disk is full.")


def test_run_needs_no_file(engine: dict[str, Any], tmp_path: Path) -> None:
    result = call(
        *("run", "--benchmark", "long-sequence", "--order", 4, "--data", tmp_path, "--model", "smollm2-135m"),
        *("--method", "kif", "--output", tmp_path / "out", "--set", "method.gamma=0.6"),
    )
    assert result.exit_code == 0, result.output
    given = engine["config"]
    assert (given.data.benchmark, given.data.order, given.data.path) == ("long-sequence", 4, tmp_path)
    assert given.method.settings == {"gamma": 0.6}


def test_run_without_anything_names_every_option_that_is_missing() -> None:
    refused(call("run"), "--benchmark", "--data", "--model", "--method", "--output")


def test_run_names_the_option_that_is_wrong(tmp_path: Path) -> None:
    common = ["--model", "smollm2-135m", "--output", tmp_path / "out"]
    refused(
        call("run", "--benchmark", "superni", "--method", "kif", *common), "--benchmark", "the key data.path"
    )
    refused(call("run", "--benchmark", "suprni", "--method", "kif", *common), "Did you mean 'superni'?")
    refused(
        call("run", "--benchmark", "support-desk", "--method", "kyf", *common),
        "--method",
        "Did you mean 'kif'?",
    )
    refused(
        call("run", "--benchmark", "support-desk", "--order", 7, "--method", "kif", *common),
        "--order",
        "found 7",
    )
    refused(
        call("run", "--data", tmp_path / "no", "--method", "kif", *common), "--data", "which is not there"
    )


def test_an_option_and_a_setting_of_the_same_key_are_refused(config: Path) -> None:
    refused(call("run", config, "--seed", 1, "--set", "training.seed=2"), "--seed", "--set training.seed")


def test_a_folder_with_another_run_is_refused_in_the_runners_words(
    engine: dict[str, Any], config: Path
) -> None:
    engine["error"] = RunError("output: runs/a holds another run; name another folder.")
    refused(call("run", config), "error: output: runs/a holds another run; name another folder.")
    assert engine["closed"]


def test_an_interruption_ends_with_130_and_one_line(engine: dict[str, Any], config: Path) -> None:
    engine["error"] = KeyboardInterrupt()
    for arguments in (["run", config], ["demo"]):
        result = call(*arguments)
        assert result.exit_code == 130
        assert "Traceback" not in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_a_full_disk_is_said_without_a_traceback_wherever_it_is_noticed(
    engine: dict[str, Any], config: Path
) -> None:
    engine["error"] = OSError(errno.ENOSPC, "No space left on device", "runs/a/trainer")
    refused(call("run", config), "error: runs/a/trainer: No space left on device. Correct this and give")


def test_an_error_of_kifuses_own_keeps_its_traceback(engine: dict[str, Any], config: Path) -> None:
    engine["error"] = ZeroDivisionError("a bug")
    result = call("run", config)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_bug_prints_a_traceback_as_a_program(tmp_path: Path) -> None:
    code = "import kifuse.method_catalog as r\nr.METHODS = None\nfrom kifuse.cli import main\nmain()"
    command = [sys.executable, "-c", code, "ls", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_demo_takes_seed_folder_and_methods(engine: dict[str, Any], tmp_path: Path) -> None:
    assert call("demo").exit_code == 0
    assert engine["demo"] == (None, 0, ("sequential", "recurrent-kif"))
    result = call("demo", "--seed", 2, "--output", tmp_path, "--methods", "kif, replay,kif")
    assert (result.exit_code, result.output) == (0, "shown\n")
    assert engine["demo"] == (tmp_path, 2, ("kif", "replay"))


def test_the_demo_refuses_unknown_methods() -> None:
    refused(
        call("demo", "--methods", "sequental"), "--methods: found 'sequental'", "Did you mean 'sequential'?"
    )
    refused(call("demo", "--methods", " , "), "--methods: found no name")


def test_table_compares_runs_and_refuses_what_is_none(engine: dict[str, Any], tmp_path: Path) -> None:
    result = call("table", tmp_path, tmp_path)
    assert (result.exit_code, "compared 2" in result.output) == (0, True)
    refused(call("table", tmp_path / "none"), "holds no run")
    assert call("table").exit_code == 2


def test_other_libraries_say_nothing_while_they_are_imported(config: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine", encoding="utf-8")
    code = (
        "import logging\nfrom kifuse.cli import app\n"
        "app(['ls', 'methods'], standalone_mode=False)\n"
        "logging.getLogger('bitsandbytes.backends').warning('a notice')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stderr == ""
    refused = shell("run", config)
    assert "torch" in refused.stdout and refused.returncode != 0
    assert refused.stderr.startswith("error: output: ") and "holds no run" in refused.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--chat", "--json"], "found --chat and --json, expected one of them"),
        (["a text", "--chat"], "found several of TEXT, --file and --chat"),
    ],
)
def test_ask_takes_one_way_of_asking(options: list[str], expected: str) -> None:
    refused(call("ask", "desk", *options), expected)

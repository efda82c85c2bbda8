"""A method with an adapter of its own, in one file of the working directory, wherever methods work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from kifuse import ContinualLearner, registry
from kifuse.cli import app
from kifuse.errors import ConfigError, RunError
from kifuse.methods.base import SETTINGS, Method
from kifuse.methods.kept import Kept
from kifuse.own_method import name_method
from kifuse.registry import build_method
from kifuse.running.runner import run
from kifuse.running.shared_first_task import trains_plainly
from tests.months import make_trainer, new_model, rows
from tests.runs import TASKS, make_config

pytestmark = pytest.mark.usefixtures("quick")
FILE = (Path(__file__).parents[2] / "examples" / "own_adapter.py").read_text("utf-8")
NAME = "shifting_file:Shifting"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    monkeypatch.delitem(sys.modules, "shifting_file", raising=False)
    (tmp_path / "shifting_file.py").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_a_method_in_a_file_of_ones_own_runs_and_is_compared(
    here: Path, tiny_folder_llama: Path, tiny_stream: Path
):
    config = make_config(tiny_folder_llama, tiny_stream, here / "run", {"name": "sequential"})
    values = {**config.model_dump(mode="json"), "method": {"name": NAME, "decay": 0.25}}
    (here / "mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", "mine.yaml", "--quiet"])
    assert done.exit_code == 0, done.output
    record = json.loads((here / "run" / "record.json").read_text("utf-8"))
    assert record["method"]["name"] == NAME and record["method"]["settings"] == {"decay": 0.25}
    assert {s["after"] for s in record["scores"]} == {1, 2, 3}

    saved = json.loads((here / "run/adapters/after-3/adapter_config.json").read_text("utf-8"))
    assert saved["method"] == NAME and saved["method_settings"] == {"decay": 0.25}
    asked = ["compare", "mine.yaml", "--methods", f"sequential,{NAME}", "--output", "compared", "--quiet"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    found = [json.loads(file.read_text("utf-8")) for file in here.glob("compared/**/record.json")]
    assert {each["method"]["name"] for each in found} == {"sequential", NAME}
    assert (here / "compared/comparison.html").is_file()
    again = CliRunner().invoke(app, [*asked])
    assert again.exit_code == 0, again.output


def test_a_learner_takes_it_and_its_folder_alone_does_not_name_it(
    here: Path, tiny_folder_llama: Path, tiny_stream: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(tiny_folder_llama, tiny_stream, Path("unused"), {"name": "sequential"}).model_dump()
    settings = {name: config[name] for name in ("model", "training", "evaluation")}
    learner = ContinualLearner(str(tiny_folder_llama), NAME, "learner", settings=settings, progress=False)
    learner.learn(tiny_stream / "colour")
    monkeypatch.setattr(registry, "METHODS", {k: v for k, v in registry.METHODS.items() if k != NAME})
    with pytest.raises(RunError, match=r"is code, and a folder cannot make code run.*own_method="):
        ContinualLearner.load("learner", progress=False)
    asked = ["ask", "learner", "red", "--quiet"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 and f"--own-method {NAME}" in " ".join(refused.output.split())
    answered = CliRunner().invoke(app, [*asked, "--own-method", NAME])
    assert answered.exit_code == 0, answered.output
    again = ContinualLearner.load("learner", own_method=NAME, progress=False)
    again.learn(tiny_stream / "fruit")
    assert again.tasks == ["colour", "fruit"]
    monkeypatch.setattr(registry, "METHODS", {k: v for k, v in registry.METHODS.items() if k != NAME})
    asked = ["ask", "learner", "Which colour?", "--task", "colour", "--quiet"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 and f"--own-method {NAME} in the shell" in refused.stderr
    assert CliRunner().invoke(app, [*asked, "--own-method", NAME]).exit_code == 0


def test_a_learners_method_is_not_looked_for_in_its_settings(here: Path, tiny_folder_llama: Path):
    settings = {"method": {"decay": 0.25}}
    with pytest.raises(
        ConfigError, match=r"settings: method: found \{'decay': 0\.25\}; give the method with"
    ):
        ContinualLearner(str(tiny_folder_llama), NAME, "learner", settings=settings, progress=False)
    assert not (here / "learner").exists()


def test_a_first_task_is_shared_only_by_methods_that_say_so():
    class Storing(Method):
        """Says nothing."""

    assert not trains_plainly(Storing())
    assert trains_plainly(build_method("sequential")) and not trains_plainly(build_method("der++"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_file:Method", r"holds no module 'no_such_file'; expected a file no_such_file\.py there"),
        ("shifting_file:Shiftin", r"shifting_file\.py has no class 'Shiftin'\. Did you mean 'Shifting'"),
        ("shifting_file:Shift", r"is not a method\. Derive the class from kifuse\.Method"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_is_there(here: Path, name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        name_method(name)


def declared(body: str, header: str = "@dataclass(kw_only=True, config=SETTINGS)") -> str:
    """The file of a method that has only this in its class."""
    imports = (
        "import kifuse\nfrom kifuse.methods.base import SETTINGS\nfrom pydantic.dataclasses import dataclass"
    )
    return f"{imports}\n\n{header}\nclass Mine(kifuse.Method):\n    strength: float = 1.0\n{body}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    old_data = 'mix'\n", r"old_data is 'mix', expected one of none, mixed, steps, all"),
        ("    needs = frozenset({'keep'})\n", r"needs has 'keep', expected words out of .*kept.*mean 'kept'"),
        (
            "    def on_gradient(self, ctx):\n        pass\n",
            r"calls 'on_gradient', expected 'on_gradients'",
        ),
        (
            "    def loss(self, ctx, batch, outputs):\n        pass\n",
            r"loss\(self, ctx, batch, outputs\) cannot be .* loss\(self, ctx, model, batch, outputs\)",
        ),
    ],
)
def test_what_would_be_ignored_in_silence_is_refused(here: Path, body: str, message: str):
    (here / "shifting_file.py").write_text(declared(body), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        name_method("shifting_file:Mine")


def test_a_class_that_ignores_unknown_settings_is_refused(here: Path):
    (here / "shifting_file.py").write_text(declared("", "@dataclass"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"would ignore settings.*config=SETTINGS"):
        name_method("shifting_file:Mine")


def test_own_words_and_helpers_are_left_alone(here: Path):
    body = (
        "    def distance(self, ctx):\n        return 0\n    def on_step(self, ctx, *more):\n        pass\n"
    )
    (here / "shifting_file.py").write_text(declared(body), encoding="utf-8")
    name_method("shifting_file:Mine")
    assert build_method("shifting_file:Mine", {}).settings() == {"strength": 1.0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "    def loss(self, ctx, model, batch, outputs):\n        pass\n",
            r"loss returned None, expected",
        ),
        ("    def end_task(self, ctx):\n        list(ctx.kept_examples())\n", r"names 'kept' in its `needs`"),
        (
            "    needs = frozenset({'kept'})\n    old_data = 'mixed'\n"
            "    def end_task(self, ctx):\n"
            "        for example in ctx.kept_examples():\n            ctx.store(example, [1.0])\n",
            r"ctx\.store was given .*expected tensors by name",
        ),
        (
            "    def begin_task(self, ctx):\n        self.start = ctx.params.clone()\n",
            r"Mine sets self\.start, which it does not declare.*start: kifuse\.OfTask",
        ),
    ],
)
def test_slips_in_hooks_are_told_in_words(
    here: Path, tiny_folder_llama: Path, tiny_stream: Path, body: str, message: str
):
    (here / "shifting_file.py").write_text(declared(body), encoding="utf-8")
    config = make_config(tiny_folder_llama, tiny_stream, here / "run", {"name": "shifting_file:Mine"})
    with pytest.raises(RunError, match=message):
        run(config)


@dataclass(kw_only=True, config=SETTINGS)
class Logging(Method):
    """Logs in every hook of a step."""

    _calls: Kept[int] = 0

    def loss(self, ctx: Any, model: Any, batch: Any, outputs: Any) -> Any:
        self._calls += 1
        ctx.log(call=self._calls, due_in_loss=ctx.logging)
        return ctx.target_loss

    def on_gradients(self, ctx: Any) -> None:
        ctx.log(due_before=ctx.logging)

    def on_step(self, ctx: Any) -> None:
        ctx.log(due_after=ctx.logging)


def test_numbers_stand_at_the_step_that_they_belong_to(tiny_tokenizer: Any, tmp_path: Path):
    callback = Logging().callback(state_dir=tmp_path / "state")
    data = rows(tiny_tokenizer, TASKS[0])
    trainer = make_trainer(
        tiny_tokenizer,
        new_model(tiny_tokenizer),
        tmp_path,
        data,
        [callback],
        save_strategy="no",
        logging_steps=2,
    )
    trainer.train()
    found: dict[int, dict[str, float]] = {}
    for line in trainer.state.log_history:
        found.setdefault(int(line["step"]), {}).update(line)
    # two micro-batches a step: calls 1 and 2 belong to step 1
    assert [found[step]["call"] for step in (1, 2, 3)] == [1.5, 3.5, 5.5]
    for step in range(1, 7):
        due = float(found[step]["due_after"])
        assert found[step]["due_in_loss"] == found[step]["due_before"] == due == (step % 2 == 0)

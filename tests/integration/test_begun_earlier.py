"""Folders that an earlier version wrote (in `begun_earlier`) go on, and examples read as they did then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from kifuse import ContinualLearner
from kifuse.page_refresh import run
from kifuse.record.run_record import RunRecord
from kifuse.running.progress import Progress
from kifuse.tasks import Encoder, read_stream
from tests.runs import make_config

pytestmark = pytest.mark.usefixtures("quick")
KEPT = Path(__file__).parents[1] / "begun_earlier"
JANUARY = "Which colour?\nOption: red, blue\ntest 0 ship\nAnswer:"
FEBRUARY = "Route.\n\nUser: Hi\nAssistant: Hello.\nUser: test 0?\nAssistant:"
READ = {
    # what that version gave to the model, as it was printed there
    "plain": [(FEBRUARY, " red</s>"), (JANUARY, " red</s>")],
    "chat": [
        (f"<|turn|>user\n{text}<|end|>\n<|turn|>assistant\n", "red</s>") for text in (FEBRUARY, JANUARY)
    ],
}
FORM = {"plain": "plain", "chat": "one turn"}


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def there(tmp_path: Path, tiny_folder_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the folders, the data and the model that they were written beside."""
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model").symlink_to(tiny_folder_llama, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    """Prompt and target of the first test example of each task."""
    found = [encoder.encode(task.test[0]) for task in read_stream(Path("data"))]
    return [(str(tokenizer.decode(e.input_ids)), str(tokenizer.decode(e.target_ids))) for e in found]


@pytest.mark.parametrize("form", FORM)
def test_a_run_goes_on_with_the_form_that_it_began_with(form: str, there: Path):
    told = Told()
    config = make_config(
        Path("model"),
        Path("data"),
        Path(f"run-{form}"),
        {"name": "sequential"},
        model={"adapter": {"rank": 2}},
        data={"order": ["january", "february"], "max_input": 128}
        | ({"chat_template": True} if form == "chat" else {}),
    )
    assert RunRecord.load(Path(f"run-{form}")).rendering == {}
    record = run(config, progress=told)
    assert record.status == "finished" and record.rendering["form"] == FORM[form]
    assert "it began so" in record.rendering["why"]
    assert any(f"examples keep the form of that version: {FORM[form]}" in line for line in told.lines)
    assert any(line.startswith("going on after task 1 of 2") for line in told.lines)
    assert record.tasks[0].train_steps == 2 and record.tasks[1].train_steps == 2


@pytest.mark.parametrize("form", FORM)
def test_a_learner_goes_on_with_the_form_that_it_began_with(
    form: str, there: Path, tiny_tokenizer: PreTrainedTokenizerFast
):
    told = Told()
    learner = ContinualLearner.load(f"learner-{form}", progress=told)
    assert learner.tasks == ["january"]
    assert any(f"examples keep the form of that version: {FORM[form]}" in line for line in told.lines)
    assert read(learner._engine.encoder, tiny_tokenizer) == READ[form]
    learner.learn("data/february")
    assert learner.tasks == ["january", "february"]
    again = ContinualLearner.load(f"learner-{form}", progress=False)
    assert again.record.rendering["form"] == FORM[form]
    assert read(again._engine.encoder, tiny_tokenizer) == READ[form]


def test_a_learner_with_plain_prompts_takes_the_template_when_it_is_told_to(
    there: Path, tiny_tokenizer: PreTrainedTokenizerFast
):
    told = Told()
    record = RunRecord.load(Path("learner-plain"))
    sections = {key: value for key, value in record.config.items() if key != "method"}
    sections["data"] = {**sections["data"], "chat_template": True}
    learner = ContinualLearner(
        "model", record.config["method"], "learner-plain", settings=sections, progress=told
    )
    assert "from now on examples are given to the model in another form: chat template" in str(told.lines)
    assert learner.record.rendering["form"] == "chat template"
    (prompt, answer), _ = read(learner._engine.encoder, tiny_tokenizer)
    assert prompt.startswith("<|turn|>system\nRoute.<|end|>\n<|turn|>user\nHi<|end|>\n")
    assert answer == "red<|end|>"

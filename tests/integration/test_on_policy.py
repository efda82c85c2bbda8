"""SDFT and on-policy repair in whole runs and in a Trainer: what they sample, from whom they learn."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.driving.method_loss import targets_of
from kifuse.errors import RunError
from kifuse.methods.on_policy_repair import OnPolicyRepair
from kifuse.methods.sdft import SDFT
from kifuse.running.runner import run
from kifuse.running.task_texts import _asking_more
from kifuse.tasks.task import Conversation, Example, Task
from tests.learners import Make
from tests.reference import sampled
from tests.runs import make_config
from tests.setups import SETUPS, OwnRows, tokenizer

pytestmark = pytest.mark.usefixtures("quick")


def watched(cls: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, Any, Any]]:
    """Compute each loss twice; gives (the method's, the literal one, prompts of student and of teacher)."""
    original, seen, teachers = cls.loss, list[tuple[float, float, Any, Any]](), list[Any]()

    def begin(self: Any, ctx: Any) -> None:
        teachers.append(copy.deepcopy(ctx.trainer.model).eval())
        begun(self, ctx)

    def loss(self: Any, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        asked: dict[str, Any] = {}
        for name in ("sampled", "train_forward", "forward"):
            plain = getattr(ctx, name)

            def spy(*args: Any, _plain: Any = plain, _name: str = name, **kwargs: Any) -> Any:
                asked[_name] = (args[0], found := _plain(*args, **kwargs))
                return found

            setattr(ctx, name, spy)
        try:
            found = original(self, ctx, model, batch, outputs)
        finally:
            for name in ("sampled", "train_forward", "forward"):
                delattr(ctx, name)
        if "sampled" not in asked:
            return found
        (given, student), (taught, _) = asked["train_forward"], asked["forward"]
        two_sided = bool(ctx.trainer.model.config.is_encoder_decoder)
        with torch.no_grad():
            said = teachers[-1](**{k: v for k, v in taught.only_part.items() if k != "labels"})
        pairs = zip(
            targets_of(given.only_part, student, aligned=two_sided),
            targets_of(taught.only_part, said, aligned=two_sided),
            strict=True,
        )
        terms, counts = [], ctx.target_counts(batch).tolist()
        for (now, answer), (before, same) in pairs:
            assert torch.equal(answer, same)
            each = [sampled.divergence(a, b, self.direction) for a, b in zip(now, before, strict=True)]
            terms.append(sum(each) / len(each))
        mean = sum(n * term for n, term in zip(counts, terms, strict=True)) / sum(counts)
        seen.append((float(found.detach()), mean, given, taught))
        return found

    begun = cls.begin_task
    monkeypatch.setattr(cls, "begin_task", begin)
    monkeypatch.setattr(cls, "loss", loss)
    return seen


@pytest.mark.parametrize(("family", "direction"), [("llama", "reverse"), ("llama", "jsd"), ("t5", "forward")])
def test_sdft_learns_from_the_model_that_is_shown_the_answer(
    request: pytest.FixtureRequest,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    direction: str,
):
    seen = watched(SDFT, monkeypatch)
    method = {"name": "sdft", "most": 4, "direction": direction, "demonstration": "\nOnce: {answer}\n"}
    config = make_config(request.getfixturevalue(f"tiny_folder_{family}"), tiny_stream, tmp_path, method)
    record = run(config)
    assert len(seen) == sum(task.train_steps or 0 for task in record.tasks)
    for found, wanted, given, taught in seen:
        assert found == pytest.approx(wanted, rel=2e-3, abs=1e-6)
        asked, shown = given.only_part["attention_mask"].sum(), taught.only_part["attention_mask"].sum()
        assert int(shown) > int(asked)
    (event,) = [e for e in record.tasks[0].events if e["kind"] == "demonstrations"]
    assert event["shown"] == 12
    assert record.method.data_class == "replay-free"
    assert not any(e["kind"] == "examples" for task in record.tasks for e in task.events)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_repair_draws_the_model_back_on_general_questions(
    request: pytest.FixtureRequest,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
):
    rows = [{"input": f"tell me of place {number}", "output": "unread"} for number in range(6)]
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    memory = {"source": "generic", "generic": file}
    folder = request.getfixturevalue(f"tiny_folder_{family}")
    training = {"learning_rate": 3e-2}
    seen = watched(OnPolicyRepair, monkeypatch)
    method = {"name": "on-policy-repair", "steps": 12, "most": 4}
    config = make_config(folder, tiny_stream, tmp_path / "run", method, memory=memory, training=training)
    record = run(config)
    assert len(seen) == 24
    for found, wanted, _, _ in seen:
        assert found == pytest.approx(wanted, rel=2e-3, abs=1e-6)
    events = [[e for e in task.events if e["kind"] == "on-policy repair"] for task in record.tasks]
    assert [len(each) for each in events] == [0, 1, 1]
    for (event,) in events[1:]:
        assert event["steps"] == 12 and event["last"] < 0.7 * event["first"]
    assert record.method.data_class == "generic replay"


def test_what_is_sampled_depends_on_neither_the_split_of_a_batch_nor_the_run(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def answers(name: str, accumulation: int) -> list[list[int]]:
        with pytest.MonkeyPatch.context() as patch:
            seen = watched(SDFT, patch)
            run(
                make_config(
                    tiny_folder_llama,
                    tiny_stream,
                    tmp_path / name,
                    {"name": "sdft", "most": 4},
                    training={"accumulation": accumulation},
                )
            )
        first = seen[:accumulation]
        return [
            [token for token in row if token != -100]
            for _, _, given, _ in first
            for row in given.only_part["labels"].tolist()
        ]

    whole = answers("whole", 1)
    assert whole == answers("again", 1) and len(whole) == 4
    assert whole == answers("parts", 2)
    assert len({tuple(row) for row in whole}) > 1


def test_repair_in_a_trainer_of_ones_own_needs_its_tokenizer(tmp_path: Path):
    def train(known: Any) -> OnPolicyRepair:
        method, memory = OnPolicyRepair(steps=3, most=4), OwnRows()
        trainer = SETUPS["`Trainer`, a language model"](tmp_path, [method.callback(memory=memory)])
        trainer.processing_class, memory.trainer = known, trainer
        trainer.train()
        return method

    with pytest.raises(RunError, match=r"processing_class=tokenizer"):
        train(None)
    assert len(train(tokenizer())._divergences) == 3


def test_a_learner_that_went_back_to_its_beginning_learns_as_at_first(make: Make, tasks: list[Task]):
    learner = make({"name": "sdft", "most": 4})
    first = learner.learn(tasks[0])
    weights = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.rollback(to=0)
    again = learner.learn(tasks[0])
    assert (first.before, first.after) == (again.before, again.after)
    assert all(torch.equal(value, weights[name]) for name, value in learner.model.state_dict().items())


def test_the_teacher_reads_the_answer_in_the_last_question_of_a_chat():
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "who"}]},
        {"role": "assistant", "content": "I"},
    ]
    row = Example("", "who", "", ("I",), conversation=Conversation.of(messages))
    found = _asking_more(row, " MORE")
    assert found.conversation is not None
    assert found.conversation.messages[0]["content"] == "hello"
    assert found.conversation.messages[2]["content"][-1]["text"] == " MORE"
    assert found.body == "who MORE" and row.body == "who"

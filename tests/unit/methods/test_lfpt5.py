"""LFPT5: where the prompt stands, its loss, and what is kept of what the model wrote."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.answering.generation import greedy_generate
from kifuse.config import AdapterConfig, TrainingConfig
from kifuse.driving.method_loss import key_of
from kifuse.methods.lfpt5 import LESSON, LFPT5, PSEUDO, SEPARATOR
from kifuse.methods.sampled import Sampling
from kifuse.methods.texts import Noted
from kifuse.models.loading import Backbone
from kifuse.running.one_task import train_task
from kifuse.running.runner import run
from kifuse.running.task_texts import TaskTexts
from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.task import Example
from tests.adapters import add_adapter, learned_weights
from tests.padded_rows import padded
from tests.reference import lfpt5
from tests.runs import METHODS, PressCtrlC, adapter, make_config
from tests.tiny import build_llama, build_t5, build_tokenizer
from tests.two_tasks import adapted, load
from tests.unit.methods.test_generated import Said
from tests.unit.methods.test_l2p import by_hand

pytestmark = pytest.mark.usefixtures("quick")
BUILD = {"llama": build_llama, "t5": build_t5}
FAMILIES = pytest.mark.parametrize("family", BUILD)
ASKED = [[5, 9, 13, 7, 30], [44, 6], [21, 22, 23]]
ANSWERS = [[8], [11, 12, 13], [9, 10]]


@FAMILIES
@pytest.mark.parametrize("width", [0, 12])
def test_the_prompt_stands_behind_what_is_asked_and_before_the_answer(family: str, width: int):
    t5 = family == "t5"
    method = LFPT5(length=3)
    model = add_adapter(BUILD[family](64), AdapterConfig(), encoder_decoder=t5, seed=3, method=method).eval()
    plain, prompt = BUILD[family](64).eval(), model.soft_prompts.prompt.detach()
    embed = plain.get_input_embeddings()
    with torch.no_grad():
        if t5:
            said = {"decoder_input_ids": torch.tensor([[1, 2]] * 3)}
            found = model(**padded(ASKED, left=False, to=width), **said).logits
        else:
            whole = [a + b for a, b in zip(ASKED, ANSWERS, strict=True)]
            given = padded(whole, left=True, to=width)
            labels = padded([[-100] * len(a) + b for a, b in zip(ASKED, ANSWERS, strict=True)], left=True)
            labels = torch.nn.functional.pad(
                labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100),
                (given["input_ids"].shape[1] - labels["input_ids"].shape[1], 0),
                value=-100,
            )
            places = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
            found = model(**given, labels=labels, position_ids=places).logits
        for place, (asked, answer) in enumerate(zip(ASKED, ANSWERS, strict=True)):
            parts = [embed(torch.tensor(asked)), prompt]
            if t5:
                wanted = plain(inputs_embeds=torch.cat(parts)[None], decoder_input_ids=torch.tensor([[1, 2]]))
                torch.testing.assert_close(found[place], wanted.logits[0], rtol=1e-4, atol=1e-5)
                continue
            parts.append(embed(torch.tensor(answer)))
            wanted = plain(inputs_embeds=torch.cat(parts)[None]).logits[0]
            # from the last vector of the prompt, which says the first token of the answer
            count = len(answer) + 1
            torch.testing.assert_close(found[place, -count:], wanted[-count:], rtol=1e-4, atol=1e-5)


@FAMILIES
def test_answers_are_those_of_each_prompt_alone(family: str):
    tokenizer, t5 = build_tokenizer("bytes"), family == "t5"
    base = BUILD[family](len(tokenizer))
    model = add_adapter(base, AdapterConfig(), encoder_decoder=t5, seed=3, method=LFPT5(length=3)).eval()
    prompts = [tokenizer(text)["input_ids"] for text in ("one harbour", "two", "one harbour more", "six")]
    together = greedy_generate(
        model, tokenizer, prompts, encoder_decoder=t5, max_new_tokens=5, batch_tokens=64
    )
    assert together == [by_hand(model, tokenizer, prompt, t5, 5) for prompt in prompts]


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def marked(backbone: Backbone) -> tuple[list[Encoded], dict[str, str], Noted]:
    """Twelve examples in turns of the task, of pseudo samples and lessons, and what is noted with them."""
    encoder = Encoder(
        backbone.tokenizer, encoder_decoder=backbone.encoder_decoder, max_input=64, max_target=12
    )
    texts = [
        Example("Which?\n", f"ship {n}", "\nAnswer:", (("red", "blue town", f"ship {n} sings")[n % 3],))
        for n in range(12)
    ]
    found, kinds = encoder.encode_many(texts), ("", PSEUDO, LESSON)
    keys = [key_of(each, encoder_decoder=backbone.encoder_decoder) for each in found]
    names = {key: kinds[n % 3] for n, key in enumerate(keys)}
    counts = Counter[str]()
    for n, each in enumerate(found):
        counts[kinds[n % 3]] += len(each.target_ids)
    # one step: all of them, so that the average step is the step
    return found, names, Noted(names, dict(counts))


def learned(
    backbone: Backbone, folder: Path, method: LFPT5, accumulation: int = 1, epochs: int = 2
) -> tuple[Backbone, dict[str, Tensor]]:
    examples, _, method.noted = marked(backbone)
    mine = adapted(backbone, method=method)
    settings = TrainingConfig(
        learning_rate=1e-2, epochs=epochs, batch_size=12, accumulation=accumulation, scheduler="constant"
    )
    train_task(mine.model, mine, method, settings, index=1, name="x", current=examples, folder=folder)
    return mine, {n: p.detach().clone() for n, p in learned_weights(mine.model).items()}


def test_the_loss_is_the_literal_one(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen, original = list[tuple[float, float]](), LFPT5.loss

    def see(self: LFPT5, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        found = original(self, ctx, model, batch, outputs)
        before = ctx.targets(batch, ctx.forward(batch, at="before task"))
        rows = [
            lfpt5.Row(note or "task", now.detach(), old, gold.tolist())
            for note, (now, gold), (old, _) in zip(
                ctx.notes(batch), ctx.targets(batch, outputs), before, strict=True
            )
        ]
        seen.append((float(found.detach()), lfpt5.loss(rows, 0.25, 0.4)))
        return found

    monkeypatch.setattr(LFPT5, "loss", see)
    method = LFPT5(length=3, distillation=0.4)
    mine, values = learned(backbone, tmp_path, method, epochs=3)
    assert len(seen) == 3 and len({wanted for _, wanted in seen}) == 3
    for found, wanted in seen:
        assert found == pytest.approx(wanted, rel=1e-4)
    # nothing but the prompt
    assert list(values) == ["soft_prompts.prompt"]
    for name, p in mine.model.named_parameters():
        if name not in values:
            assert torch.equal(p, backbone.model.get_parameter(name))


def test_accumulation_changes_nothing(backbone: Backbone, tmp_path: Path):
    reached = [learned(backbone, tmp_path, LFPT5(length=3, distillation=0.4), parts)[1] for parts in (1, 3)]
    torch.testing.assert_close(reached[0], reached[1], rtol=1e-4, atol=1e-5)


def test_a_student_that_is_its_teacher_is_not_distilled(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Teacher and student are two tensors: once the prompt has moved they are apart."""
    seen, original = list[float](), LFPT5.loss

    def see(self: LFPT5, ctx: Any, *given: Any) -> Tensor:
        seen.append(float(original(self, ctx, *given).detach()))
        return original(self, ctx, *given)

    monkeypatch.setattr(LFPT5, "loss", see)
    learned(backbone, tmp_path, LFPT5(length=3, distillation=1.0))
    assert seen[0] == pytest.approx(0, abs=1e-5)
    learned(backbone, tmp_path, LFPT5(length=3, distillation=0.5))
    assert seen[3] > 1e-3


def rows(name: str, count: int = 3) -> list[Example]:
    return [Example(f"Which {name}?\n", f"text {n}", "\nAnswer:", ("plum",), str(n)) for n in range(count)]


def ends(method: LFPT5, task: Any) -> None:
    """The end of a task, of which the method asks no more than its name."""
    method.end_task(type("Ending", (), {"task": task})())  # type: ignore[arg-type]


def test_pseudo_samples_pass_the_filters_or_are_counted():
    method, first = LFPT5(per_class=1, attempts=2), Said([], ("plum", "apple"), ["text 0", "text 1"])
    found = method.training_examples(first, rows("fruit"))
    assert [row.note for row in found] == [""] * 3 + [LESSON] * 3
    assert found[3].input == "Write an example of the task 'fruit'.\nExample:"
    assert found[3].target == f"text 0 {SEPARATOR} plum"
    ends(method, first.task)
    texts = [
        "no separator",
        f"a {SEPARATOR} b {SEPARATOR} plum",
        f" Text  1 {SEPARATOR} plum",
        f"new one {SEPARATOR} plum",
    ]
    later = Said(texts, ("sun",), [])
    later.task = type(first.task)(1, "weather", 0)
    found = method.training_examples(later, rows("weather"))
    (event,) = later.events
    assert (event["of"], event["wanted"], event["kept"]) == ("fruit", 2, 1)
    assert (event["malformed"], event["copies"], event["labels"], event["labels_in_all"]) == (2, 1, 1, 2)
    assert event["examples"] == [{"input": "new one", "output": "plum"}]
    (pseudo,) = [row for row in found if row.note == PSEUDO]
    assert (pseudo.input, pseudo.target) == ("Which fruit?\nnew one\nAnswer:", "plum")
    # a lesson for each example of the task and of earlier ones, under its own task's name
    lessons = [row.input.splitlines()[0] for row in found if row.note == LESSON]
    assert Counter(lessons) == {
        "Write an example of the task 'weather'.": 3,
        "Write an example of the task 'fruit'.": 1,
    }


def test_no_text_of_an_example_is_kept():
    method, ctx = LFPT5(), Said([], ("plum",), ["text 0 secret"])
    method.training_examples(ctx, [Example("Which?\n", "text 0 secret", "\nAnswer:", ("plum",))])
    ends(method, ctx.task)
    assert "secret" not in json.dumps(method.state().values)


def test_a_run_that_writes_pseudo_samples_goes_on_where_it_was_stopped(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A tiny model writes nothing that passes; here it writes one sample of each label."""

    def generate(self: TaskTexts, prompts: list[Any], sampling: Sampling) -> list[str]:
        self._random.random()
        words = {"colour": ("red", "blue"), "fruit": ("apple", "plum"), "weather": ("sun", "rain")}
        name = prompts[0].head.split("'")[1]
        return [f"harbour {n} {SEPARATOR} {words[name][n % 2]}" for n in range(len(prompts))]

    monkeypatch.setattr(TaskTexts, "generate", generate)
    whole = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "whole", METHODS["lfpt5"]))
    wrote = [[e for e in task.events if e["kind"] == "pseudo samples"] for task in whole.tasks]
    assert [[e["of"] for e in events] for events in wrote] == [[], ["colour"], ["colour", "fruit"]]
    assert all(e["kept"] == 4 for events in wrote for e in events)
    # one epoch: each pseudo sample once; its lesson is a lesson
    assert [task.replayed_examples for task in whole.tasks] == [0, 4, 8]
    assert [task.examples_seen for task in whole.tasks] == [24, 28, 32]
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["lfpt5"])
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=PressCtrlC("weather", 2))
    run(config)
    for after in (1, 2, 3):
        found, wanted = adapter(config.output, after), adapter(tmp_path / "whole", after)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)

"""Progressive Prompts: what is read, what stays, and whose prompts a told task gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kifuse
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.methods.progprompt import ProgPrompt
from kifuse.running.runner import run
from tests.adapters import add_adapter, on
from tests.padded_rows import padded
from tests.reference import progprompt
from tests.runs import METHODS, TASKS, adapter, make_config
from tests.tiny import build_llama, build_t5

pytestmark = pytest.mark.usefixtures("quick")
BUILD = {"llama": build_llama, "t5": build_t5}
FAMILIES = pytest.mark.parametrize("family", BUILD)
ROWS = [[5, 9, 13, 7, 30], [44, 6], [21, 22, 23]]


def made(family: str, tasks: int = 3, **settings: Any) -> Any:
    """A model that has learned some prompts."""
    method = ProgPrompt(length=2, **settings)
    t5 = family == "t5"
    model = add_adapter(BUILD[family](64), AdapterConfig(), encoder_decoder=t5, seed=3, method=method).eval()
    for index in range(tasks):
        on(model).begin_task(index, seed=0)
        with torch.no_grad():
            model.soft_prompts.prompt.add_(0.1 * index + 0.05)
        on(model).end_task()
    return model


def prompts_of(model: Any) -> list[Tensor]:
    return list(model.soft_prompts.all_of("prompt").detach())


def logits(model: Any, family: str, width: int = 0) -> Tensor:
    more: dict[str, Any] = {}
    given = padded(ROWS, left=family == "llama", to=width)
    if family == "t5":
        more["decoder_input_ids"] = torch.tensor([[1, 2]] * 3)
    else:
        more["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**given, **more).logits


@FAMILIES
@pytest.mark.parametrize("told", [None, 0, 1, 2, 5])
def test_an_input_is_read_behind_the_prompts_up_to_its_task(family: str, told: int | None):
    model, plain = made(family), BUILD[family](64).eval()
    on(model).told = told
    found = logits(model, family)
    before = progprompt.stack(prompts_of(model), told)
    embed = plain.get_input_embeddings()
    for place, row in enumerate(ROWS):
        whole = torch.cat([before, embed(torch.tensor(row)).detach()])[None]
        if family == "t5":
            wanted = plain(inputs_embeds=whole, decoder_input_ids=torch.tensor([[1, 2]])).logits[0]
            torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-5)
        else:
            wanted = plain(inputs_embeds=whole).logits[0, -len(row) :]
            torch.testing.assert_close(found[place, -len(row) :], wanted, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_padding_changes_nothing(family: str):
    model = made(family)
    few = 2 if family == "llama" else 0
    torch.testing.assert_close(
        logits(model, family, 9)[:, -few:], logits(model, family)[:, -few:], rtol=1e-4, atol=1e-5
    )


def test_only_the_present_prompt_trains():
    model = made("llama")
    ids = torch.tensor([[5, 9, 13, 7, 30]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["soft_prompts.prompt"]


def test_what_the_network_made_of_a_prompt_is_kept_in_its_place():
    method = ProgPrompt(length=2, residual=3)
    model = add_adapter(build_llama(64), AdapterConfig(), encoder_decoder=False, seed=3, method=method).eval()
    for index in range(2):
        on(model).begin_task(index, seed=0)
        part = model.soft_prompts
        first, _, second, _ = part.network
        wanted = progprompt.through(part.prompt, first.weight, first.bias, second.weight, second.bias)
        while_learned = logits(model, "llama")
        on(model).end_task()
        torch.testing.assert_close(part.prompt, wanted)
        assert torch.equal(logits(model, "llama"), while_learned)
    # another network for each task
    assert not torch.equal(first.weight, made("llama", 1, residual=3).soft_prompts.network[0].weight)


@pytest.mark.parametrize("family", BUILD)
def test_with_the_task_told_nothing_is_ever_forgotten(
    family: str, request: pytest.FixtureRequest, tiny_stream: Path, tmp_path: Path
):
    folder = request.getfixturevalue(f"tiny_folder_{family}")
    config = make_config(
        folder, tiny_stream, tmp_path / "run", METHODS["progprompt"], evaluation={"full_matrix": True}
    )
    record = run(config)
    assert record.method.data_class == "task id given"
    for place, task in enumerate(TASKS):
        said = [
            (config.output / "predictions" / f"after-{after}" / f"{task}.jsonl").read_text("utf-8")
            for after in range(place + 1, 4)
        ]
        assert len(set(said)) == 1
    prompts = [adapter(config.output, after) for after in (1, 2, 3)]
    assert torch.equal(prompts[2]["soft_prompts.past_prompt"][0], prompts[0]["soft_prompts.prompt"])
    assert torch.equal(prompts[2]["soft_prompts.past_prompt"][1], prompts[1]["soft_prompts.prompt"])


def test_a_loaded_adapter_answers_for_a_task(tiny_folder_llama: Path, tmp_path: Path):
    model = made("llama")
    on(model).save(tmp_path / "adapter")
    loaded = kifuse.load_adapter(build_llama(64), tmp_path / "adapter", task=2)
    on(model).told = 1
    assert torch.equal(logits(loaded, "llama"), logits(model, "llama"))
    without = made("llama", task_id=False)
    on(without).save(tmp_path / "without")
    with pytest.raises(ModelError, match=r"task: found 2, expected .* is 'replay-free'"):
        kifuse.load_adapter(build_llama(64), tmp_path / "without", task=2)


def test_a_learner_answers_for_a_task_by_its_name(
    tiny_folder_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    learner = kifuse.ContinualLearner(
        str(tiny_folder_llama), {"name": "progprompt", "length": 2}, tmp_path / "learner", progress=False
    )
    rows = [{"input": f"{word} ship", "output": word} for word in ("red", "blue") * 2]
    for name in ("one", "two"):
        learner.learn(rows, name=name, test=rows[:1], labels=["red", "blue"])
    prompts, told = on(learner.model), []
    original = type(prompts).vectors
    monkeypatch.setattr(type(prompts), "vectors", lambda s, *a: (told.append(s.told), original(s, *a))[1])
    for task, expected in (("one", {0}), ("two", {1}), (None, {None})):
        told.clear()
        learner.generate(["red ship"], 2, task=task)
        assert set(told) == expected

"""EPI: what a prefix does to the forward pass, how inputs are told apart, and what they get then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import BaseModelOutput

import kifuse
from kifuse.answering.generation import greedy_generate
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.methods.epi import EPI, IdentifiedPrefixes, whitening
from kifuse.running.runner import run
from tests.adapters import add_adapter, on
from tests.padded_rows import ROWS, SAID, logits
from tests.reference import epi, prefixes
from tests.runs import METHODS, TASKS, adapter, make_config
from tests.tiny import build_llama, build_t5, build_tokenizer
from tests.unit.methods.test_l2p import by_hand

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # the test's own word
]
BUILD = {"llama": build_llama, "t5": build_t5}
FAMILIES = pytest.mark.parametrize("family", BUILD)


def made(family: str, vocabulary: int = 64, tasks: int = 3, **settings: Any) -> Any:
    """A model that has learned some prefixes; inputs of task t have the tokens around 20 t."""
    method, t5 = EPI(length=2, **settings), family == "t5"
    model = add_adapter(
        BUILD[family](vocabulary), AdapterConfig(), encoder_decoder=t5, seed=3, method=method
    ).eval()
    found, draw = on(model), torch.Generator().manual_seed(5)
    assert isinstance(found, IdentifiedPrefixes)
    for index in range(tasks):
        found.begin_task(index, seed=0)
        with torch.no_grad():
            model.prefixes.prefix.add_(torch.randn(model.prefixes.prefix.shape, generator=draw))
        rows = [[*torch.randint(20 * index + 3, 20 * index + 20, (5,), generator=draw)] for _ in range(40)]
        with torch.no_grad(), found.without():
            model(input_ids=torch.tensor(rows), **({"decoder_input_ids": SAID.expand(40, -1)} if t5 else {}))
        found.get_to_know(found.features, [n % 2 for n in range(40)], 10)
        found.end_task()
    return model


@torch.no_grad()
def literal(family: str, row: list[int], prefix: Tensor) -> Tensor:
    plain = BUILD[family](64).eval()
    if family == "llama":
        return prefixes.llama(plain, row, prefix)
    states = prefixes.t5_encoder(plain, row, prefix)[None]
    return plain(encoder_outputs=BaseModelOutput(states), decoder_input_ids=SAID).logits[0]


@FAMILIES
@pytest.mark.parametrize("told", [0, 1, 2, 7])
@pytest.mark.parametrize("width", [0, 9])
def test_an_input_is_read_with_the_prefix_of_its_task(family: str, told: int, width: int):
    """Each row as alone: neither the others nor padding change it."""
    model = made(family)
    on(model).told = told
    prefix = model.prefixes.all_of("prefix").detach()[min(told, 2)]
    for row, found in zip(ROWS, logits(model, family, width=width), strict=True):
        torch.testing.assert_close(found, literal(family, row, prefix), rtol=1e-4, atol=1e-5)


@FAMILIES
def test_rows_of_a_batch_get_the_prefixes_of_the_tasks_that_they_are_like(family: str):
    model = made(family)
    rows = [[45, 50, 55, 49, 46], [5, 9, 13, 7, 10], [25, 29, 33, 38, 24], [6, 4, 5, 11, 12, 8, 7]]
    found = logits(model, family, rows, width=11)
    assert on(model).taken == {2: 1, 0: 2, 1: 1}
    every = model.prefixes.all_of("prefix").detach()
    for row, task, each in zip(rows, (2, 0, 1, 0), found, strict=True):
        torch.testing.assert_close(each, literal(family, row, every[task]), rtol=1e-4, atol=1e-5)
    # while a task is learned, all are of it
    on(model).begin_task(3, seed=0)
    for row, each in zip(rows, logits(model, family, rows), strict=True):
        prefix = model.prefixes.prefix.detach()
        torch.testing.assert_close(each, literal(family, row, prefix), rtol=1e-4, atol=1e-5)


@FAMILIES
def test_features_are_those_of_the_frozen_model(family: str):
    model, plain = made(family), BUILD[family](64).eval()
    found, seen = on(model), list[Tensor]()
    assert isinstance(found, IdentifiedPrefixes)
    for width in (0, 12):
        logits(model, family, width=width)
        seen.append(found.features)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-6)
    reader = plain.encoder if family == "t5" else plain.model
    for row, z in zip(ROWS, seen[0], strict=True):
        states = reader(input_ids=torch.tensor([row])).last_hidden_state[0].detach()
        torch.testing.assert_close(z, torch.tensor(epi.mean_state(states)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("tasks", "most"), [(1, 9), (3, 2), (4, 9)])
def test_tasks_are_told_apart_as_the_equations_say(tasks: int, most: int):
    draw = torch.Generator().manual_seed(tasks)
    model = add_adapter(build_llama(64), AdapterConfig(), encoder_decoder=False, seed=0, method=EPI(length=1))
    found: Any = on(model)
    known = []
    for index in range(tasks):
        found.begin_task(index, seed=0)
        z = torch.randn(12, 32, generator=draw) @ torch.randn(32, 32, generator=draw) + 3 * index
        answers = [int(n) for n in torch.randint(0, 4, (12,), generator=draw)]
        means = found.get_to_know(z, answers, most)
        kinds = [str(each) for each in answers] if len(set(answers)) <= most else ["all"] * 12
        assert means == len(set(kinds))
        known.append((z.tolist(), kinds))
    asked = torch.randn(5, 32, generator=draw) * 5
    assert found.identify(asked).tolist() == epi.tasks_of(asked.tolist(), known)
    spread = torch.tensor(epi.spread_of(*known[0])) if tasks == 1 else None
    if spread is not None:
        torch.testing.assert_close(model.prefixes.spread[0].float(), spread, rtol=1e-4, atol=1e-4)
    values = torch.linalg.eigvalsh(model.prefixes.spread[0])
    assert float(values[0]) > -1e-9 * float(values[-1])


def test_the_order_in_which_tasks_came_does_not_change_the_spread():
    spreads = []
    for order in ((0, 1, 2), (2, 0, 1)):
        model = add_adapter(
            build_llama(64), AdapterConfig(), encoder_decoder=False, seed=0, method=EPI(length=1)
        )
        found: Any = on(model)
        for index, task in enumerate(order):
            found.begin_task(index, seed=0)
            z = torch.randn(9, 32, generator=torch.Generator().manual_seed(task))
            found.get_to_know(z, ["x"] * 9, 5)
        spreads.append(model.prefixes.spread)
    torch.testing.assert_close(spreads[0], spreads[1], rtol=1e-12, atol=1e-12)


def test_without_any_spread_the_nearest_mean_counts():
    assert torch.equal(whitening(torch.zeros(3, 3, dtype=torch.float64)), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("start", ["random", "last", "mean"])
def test_only_the_present_prefix_trains_and_it_begins_as_asked(start: str):
    model = made("llama", start=start)
    earlier = model.prefixes.all_of("prefix").detach()
    on(model).begin_task(3, seed=0)
    wanted = {"last": earlier[-1], "mean": earlier.mean(dim=0)}.get(start)
    now = model.prefixes.prefix.detach()
    if wanted is None:
        assert float(now.std()) == pytest.approx(0.02, rel=0.2)
    else:
        torch.testing.assert_close(now, wanted)
    ids = torch.tensor([[5, 9, 13, 7, 30]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["prefixes.prefix"]
    assert bool((model.prefixes.prefix.grad.abs().sum(dim=(2, 3)) > 0).all())


@FAMILIES
def test_answers_are_those_of_each_prompt_alone(family: str):
    tokenizer = build_tokenizer("bytes")
    model = made(family, len(tokenizer))
    prompts = [tokenizer(text)["input_ids"] for text in ("one harbour", "two", "one harbour more", "six")]
    together = greedy_generate(
        model, tokenizer, prompts, encoder_decoder=family == "t5", max_new_tokens=5, batch_tokens=64
    )
    assert together == [by_hand(model, tokenizer, prompt, family == "t5", 5) for prompt in prompts]


@FAMILIES
def test_a_loaded_adapter_tells_inputs_apart(family: str, tmp_path: Path):
    model = made(family)
    on(model).save(tmp_path / "adapter")
    loaded = kifuse.load_adapter(BUILD[family](64), tmp_path / "adapter")
    for found, wanted in zip(logits(loaded, family), logits(model, family), strict=True):
        assert torch.equal(found, wanted)
    assert on(loaded).taken == on(model).taken


@FAMILIES
def test_with_the_task_told_nothing_is_ever_forgotten(
    family: str, request: pytest.FixtureRequest, tiny_stream: Path, tmp_path: Path
):
    config = make_config(
        request.getfixturevalue(f"tiny_folder_{family}"),
        tiny_stream,
        tmp_path / "run",
        METHODS["epi, with task ids"],
        evaluation={"full_matrix": True},
    )
    record = run(config)
    assert record.method.data_class == "task id given"
    assert {score.identified for score in record.scores} == {None}
    for place, task in enumerate(TASKS):
        said = {
            (config.output / "predictions" / f"after-{after}" / f"{task}.jsonl").read_text("utf-8")
            for after in range(place + 1, 4)
        }
        assert len(said) == 1


@FAMILIES
def test_a_run_says_how_often_it_found_the_task(
    family: str, request: pytest.FixtureRequest, tiny_stream: Path, tmp_path: Path
):
    """The instruction names the task, so that even a random model tells the tasks apart."""
    config = make_config(
        request.getfixturevalue(f"tiny_folder_{family}"),
        tiny_stream,
        tmp_path / "run",
        METHODS["epi"],
        evaluation={"full_matrix": True},
    )
    record = run(config)
    for task in record.tasks:
        (event,) = [each for each in task.events if each["kind"] == "identification"]
        assert (event["examples"], event["means"], event["by"]) == (12, 2, "answer")
        assert event["right"] == event["found_to_be_of"][task.name] / 12
    for score in record.scores:
        assert (score.identified is None) == (score.task >= score.after)
    # what is read with its own prefix is answered as right after its own task
    for place, task in enumerate(TASKS):
        if all(s.identified == 100.0 for s in record.scores if s.task == place and s.after > place):
            said = [
                json.loads(line)["prediction"]
                for after in (place + 1, 3)
                for line in (config.output / "predictions" / f"after-{after}" / f"{task}.jsonl")
                .read_text("utf-8")
                .splitlines()
            ]
            assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert sum(s.identified or 0.0 for s in record.scores if s.after == 3) > 150
    kept = [adapter(config.output, after) for after in (1, 2, 3)]
    assert torch.equal(kept[2]["prefixes.past_prefix"][0], kept[0]["prefixes.prefix"])
    assert torch.equal(kept[2]["prefixes.past_prefix"][1], kept[1]["prefixes.prefix"])


def test_a_model_whose_keys_are_not_found_is_refused():
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    with pytest.raises(ModelError, match=r"keys and values of this 'gpt2' model are not found.*'progprompt'"):
        add_adapter(gpt, AdapterConfig(), encoder_decoder=False, seed=0, method=EPI())

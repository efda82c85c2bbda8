"""Gradients of single examples: those of one backward pass each, whatever the batch, and nothing is moved."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kifuse.driving.batches import collator_of
from kifuse.driving.example_gradients import Probes, examples_of
from kifuse.driving.shards import Shards
from kifuse.errors import RunError
from kifuse.models.loading import Backbone
from kifuse.tasks.encoding import Encoded
from tests.reference import ewc
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def _trainer(model: nn.Module, size: int = 4, seed: int = 0) -> Any:
    accelerator = SimpleNamespace(process_index=0, num_processes=1, scaler=None)
    args = SimpleNamespace(seed=seed, per_device_train_batch_size=size, torch_compile=False)
    return SimpleNamespace(model=model, args=args, accelerator=accelerator, _prepare_inputs=dict)


def _probes(mine: Backbone, examples: list[Encoded], size: int = 4, seed: int = 0) -> Probes:
    shards = Shards(mine.model.named_parameters())
    return Probes(_trainer(mine.model, size, seed), shards, examples, collator_of(mine))


def _alone(mine: Backbone, example: Encoded) -> tuple[Tensor, Tensor]:
    """Logits and ids of an example's target, from a forward pass of its own without padding."""
    mine.model.eval()
    gold = torch.tensor(example.target_ids)
    if mine.encoder_decoder:
        start = torch.tensor([[0, *example.target_ids[:-1]]])
        inputs = {"input_ids": torch.tensor([example.input_ids]), "decoder_input_ids": start}
        return mine.model(**inputs).logits[0], gold
    ids = torch.tensor([example.input_ids + example.target_ids])
    first = len(example.input_ids) - 1
    return mine.model(input_ids=ids).logits[0, first:-1], gold


def _log_likelihood(mine: Backbone, example: Encoded) -> Callable[[], Tensor]:
    def of() -> Tensor:
        logits, gold = _alone(mine, example)
        total = torch.zeros(())
        for row, token in zip(logits.log_softmax(-1), gold, strict=True):
            total = total + row[token]
        return total

    return of


@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_fisher_information_is_that_of_one_backward_pass_an_example(
    backbone: Backbone, tiny_stream: Path, size: int
):
    mine = adapted(backbone, dropout=0.3)
    examples = encoded(mine, tiny_stream)[0]
    found = _probes(mine, examples, size).squared_gradients()
    params = [p for p in mine.model.parameters() if p.requires_grad]
    wanted = ewc.fisher(params, [_log_likelihood(mine, example) for example in examples])
    for f, w in zip(found, wanted, strict=True):
        assert bool((f >= 0).all()) and f.dtype == torch.float32 and float(w.max()) > 0
        torch.testing.assert_close(f.double(), w, rtol=2e-4, atol=1e-8 * float(w.max()) + 1e-12)


def test_layers_that_hide_single_examples_are_gone_through_one_by_one(backbone: Backbone, tiny_stream: Path):
    """An embedding is trained: there is no telling its batches apart, and the result is the same."""
    mine = adapted(backbone)
    examples = encoded(mine, tiny_stream)[0][:3]
    mine.model.get_input_embeddings().weight.requires_grad_(True)
    found = _probes(mine, examples).squared_gradients()
    params = [p for p in mine.model.parameters() if p.requires_grad]
    wanted = ewc.fisher(params, [_log_likelihood(mine, example) for example in examples])
    assert max(p.numel() for p in params) > 10_000
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f.double(), w, rtol=2e-4, atol=1e-8 * float(w.max()) + 1e-12)


def test_the_gradient_of_logits_is_that_of_their_sum_over_the_target(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    examples = encoded(mine, tiny_stream)[0][:3]
    params = [p for p in mine.model.parameters() if p.requires_grad]
    for example, found in zip(examples, _probes(mine, examples).logit_gradients(), strict=True):
        logits, gold = _alone(mine, example)
        total = torch.stack([row[token] for row, token in zip(logits, gold, strict=True)]).sum()
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(total, params)])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_everything_is_left_as_it_was(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone, dropout=0.3)
    model, examples = mine.model, encoded(mine, tiny_stream)[0]
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.Dropout)).eval()
    params = [p for p in model.parameters() if p.requires_grad]
    params[0].grad = torch.ones_like(params[0])
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())

    def noisy(batch: list[Encoded]) -> dict[str, Any]:
        torch.rand(3), random.random(), np.random.rand()
        return collator_of(mine)(batch)

    probes = _probes(mine, examples)
    probes.collate = noisy
    probes.squared_gradients()
    list(probes.logit_gradients(3))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
    assert [module.training for module in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(params[0].grad, torch.ones_like(params[0]))
    assert all(p.grad is None for p in params[1:])


def test_a_sample_is_of_the_seed_and_of_nothing_else(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    examples = encoded(mine, tiny_stream)[0]
    chosen = _probes(mine, examples).chosen(4)
    assert chosen == _probes(mine, examples, size=1).chosen(4) == sorted(set(chosen))
    assert len(chosen) == 4 and chosen != _probes(mine, examples, seed=1).chosen(4)
    assert _probes(mine, examples).chosen(None) == _probes(mine, examples).chosen(99) == list(range(11))
    some = _probes(mine, examples).squared_gradients(4)
    of_these = _probes(mine, [examples[i] for i in chosen]).squared_gradients()
    torch.testing.assert_close(some, of_these, rtol=1e-5, atol=1e-12)


def test_a_broken_example_is_left_out_and_costs_no_other(
    tiny_llama: LlamaForCausalLM, caplog: pytest.LogCaptureFixture
):
    rows = [
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
        {"input_ids": [50, 8, 9], "labels": [-100, 8, 9]},
    ]
    rows += [{"input_ids": [9, 8, 7, 6], "labels": [-100, -100, 7, 6]}]
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[50] = float("nan")
    tiny_llama.requires_grad_(False)
    tiny_llama.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    shards = Shards(tiny_llama.named_parameters())

    def collate(batch: list[Any]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        return {
            key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in batch])
            for key, fill in (("input_ids", 0), ("labels", -100))
        }

    def found(chosen: list[Any]) -> list[Tensor]:
        return Probes(_trainer(tiny_llama), shards, chosen, collate).squared_gradients()

    torch.testing.assert_close(found(rows), found([rows[0], rows[2]]), rtol=1e-4, atol=1e-10)
    assert "1 of 3 examples left out" in caplog.text
    assert len(list(Probes(_trainer(tiny_llama), shards, rows, collate).logit_gradients())) == 2
    with pytest.raises(RunError, match="none of the 1 examples has a finite gradient"):
        found(rows[1:2])


def test_what_overflows_in_half_precision_is_tried_at_a_smaller_scale(
    backbone: Backbone, tiny_stream: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = adapted(backbone)
    examples = encoded(mine, tiny_stream)[0][:3]
    expected = _probes(mine, examples).squared_gradients()
    probes = _probes(mine, examples)
    probes.trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 2.0**120)
    tried, plain = [], torch.autograd.grad

    def overflowing(value: Tensor, *args: Any, **kwargs: Any) -> Any:
        tried.append(float(value.detach()))
        grads = plain(value, *args, **kwargs)
        return [g * float("inf") for g in grads] if abs(tried[-1]) > 1e6 else grads

    monkeypatch.setattr(torch.autograd, "grad", overflowing)
    torch.testing.assert_close(probes.squared_gradients(), expected, rtol=1e-5, atol=1e-12)
    assert len(tried) > 50


def test_rows_without_labels_or_logits_are_refused(tiny_llama: LlamaForCausalLM):
    shards = Shards(tiny_llama.named_parameters())

    def probes(**batch: Tensor) -> Probes:
        return Probes(_trainer(tiny_llama), shards, [0], lambda _: batch)

    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(RunError, match="no 'labels'"):
        probes(input_ids=ids).squared_gradients()
    with pytest.raises(RunError, match="no 'labels'"):
        probes(input_ids=ids, labels=torch.tensor([0.5])).squared_gradients()
    with pytest.raises(RunError, match=r"one logit vector for each label \(1, 2\)"):
        probes(input_ids=ids, labels=ids[:, :2]).squared_gradients()
    with pytest.raises(RunError, match="no training examples"):
        Probes(_trainer(tiny_llama), shards, [], dict).squared_gradients()


def test_a_stream_is_refused_before_training(tiny_tokenizer: PreTrainedTokenizerFast):
    class Endless(IterableDataset):
        def __iter__(self) -> Any:
            yield {}

    assert len(examples_of(DataLoader([1, 2, 3]))) == 3  # type: ignore[arg-type]
    for loader in (DataLoader(Endless()), None):
        with pytest.raises(RunError, match=r"stream.*a data set with a length"):
            examples_of(loader)

"""Training does not depend on how its work is split up: micro-batches, processes, padding."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kifuse.config import TrainingConfig
from kifuse.driving.batches import MemoryBatches, ModelCollator
from kifuse.driving.target_loss import TargetLoss
from kifuse.methods.sequential import Sequential
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.running.one_task import train_task
from kifuse.running.runner import run
from kifuse.tasks.collator import Collator
from kifuse.tasks.encoding import Encoded
from kifuse.tasks.schedule import training_order
from tests.invariants.one_of_many import SECTIONS
from tests.processes import run_two
from tests.runs import METHODS, TASKS, adapter, make_config, write_stream
from tests.two_tasks import adapted, encoded, learn, load, values

pytestmark = pytest.mark.usefixtures("quick")
TOGETHER = [
    # the first row of each registered method, and the two that the processes could part ways in
    *{settings["name"]: name for name, settings in reversed(METHODS.items())}.values(),
    "kif, single examples",
    "recurrent-kif, own optimizer",
]

WITHOUT_TEXTS = [name for name, settings in METHODS.items() if settings["name"] != "sdft"]
"""Methods that can be driven with tokens alone; sdft shows its teacher the answer as text."""


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


@pytest.mark.parametrize("name", WITHOUT_TEXTS)
def test_a_step_is_the_same_in_one_part_or_in_many(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, name: str
):
    # eleven examples: the last of three steps is of fewer
    (whole, cost), *parts = (
        learn(backbone, tiny_stream, METHODS[name], tmp_path, epochs=1, accumulation=parts)
        for parts in (1, 2, 4)
    )
    settings = {key: value for key, value in METHODS[name].items() if key != "name"}
    method = build_method(METHODS[name]["name"], settings)
    start = values(adapted(backbone, kind="osf" if method.adapter == "osf" else "lora", method=method))
    assert all((w - s).abs().max() > 1e-3 for w, s in zip(whole, start, strict=True))
    for found, its_cost in parts:
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=2e-6)
        assert (its_cost.steps, its_cost.examples_seen) == (cost.steps, cost.examples_seen)
        assert (its_cost.replayed, its_cost.extra_passes) == (cost.replayed, cost.extra_passes)


@pytest.mark.parametrize(
    "name", ["sequential", "kif, single examples", "recurrent-kif", "migu", "ogd", "gpm", "o-lora", "osf"]
)
def test_layers_computed_again_give_the_same_bit_for_bit(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, name: str
):
    (kept, _), (again, _) = (
        learn(backbone, tiny_stream, METHODS[name], tmp_path, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_layers_are_computed_again_when_asked_for_and_only_then(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    examples, *_ = encoded(backbone, tiny_stream)
    passes = []
    for on in (False, True, False):
        mine = adapted(backbone)
        calls: list[bool] = []
        layer = next(m for name, m in mine.model.named_modules() if re.search(r"(block|layers)\.0$", name))
        # what stands in the layer, since the layer itself is what is wrapped
        next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(True))  # noqa: B023
        train_task(
            mine.model,
            mine,
            Sequential(),
            TrainingConfig(epochs=1, batch_size=4, gradient_checkpointing=on),
            index=0,
            name="first",
            current=examples,
            folder=tmp_path,
        )
        passes.append(len(calls))
        assert not any(getattr(m, "gradient_checkpointing", False) for m in mine.model.modules())
    assert passes[1] == 2 * passes[0] == 2 * passes[2]


@pytest.fixture(scope="module")
def two_processes(tiny_folder_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The stream, and the folder of the runs that two processes made together."""
    folder = tmp_path_factory.mktemp("two")
    # fourteen: the last batch of four is short, so that the processes have unequal shares of it
    stream = write_stream(folder / "stream", train=14)
    given = (str(tiny_folder_llama), str(stream), str(folder), json.dumps(TOGETHER))
    run_two("tests.invariants.one_of_many", *given, timeout=400)
    return stream, folder


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_learn_what_one_does(
    two_processes: tuple[Path, Path], tiny_folder_llama: Path, tmp_path: Path, name: str
):
    stream, folder = two_processes
    config = make_config(tiny_folder_llama, stream, tmp_path / "one", METHODS[name], **SECTIONS)
    record = run(config)
    # joint training has one adapter, that after all tasks
    for after in (len(TASKS),) if name == "joint" else range(1, len(TASKS) + 1):
        expected, found = adapter(tmp_path / "one", after), adapter(folder / name, after)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    theirs = json.loads((folder / name / "record.json").read_text("utf-8"))
    assert theirs["machine"]["processes"] == 2
    for one, two in zip(record.tasks, theirs["tasks"], strict=True):
        for key in ("train_steps", "examples_seen", "replayed_examples", "extra_forward_backward"):
            assert two[key] == getattr(one, key)
        assert two["per_tensor"].keys() == one.per_tensor.keys()
        for series, numbers in one.per_tensor.get("series", {}).items():
            assert two["per_tensor"]["series"][series] == pytest.approx(numbers, rel=5e-4, abs=1e-9), series


def _gradients(backbone: Backbone, batch: list[Encoded], width: int = 0) -> tuple[float, list[Tensor]]:
    """Loss and gradients of a batch, padded to at least a width by an example that counts for nothing."""
    model = backbone.model.eval()
    collator = ModelCollator(
        Collator(backbone.tokenizer.pad_token_id, backbone.encoder_decoder, set(backbone.accepts)),
        backbone.model.prepare_decoder_input_ids_from_labels if backbone.encoder_decoder else None,
    )
    filler = [Encoded([7] * width, [9] * max(width // 4, 1), cut=False)] if width else []
    inputs = collator([*batch, *filler])
    labels = inputs.pop("labels")
    if filler:
        labels[-1] = -100
    model.zero_grad()
    loss = TargetLoss(shift=not backbone.encoder_decoder)(model(**inputs), labels, 10)
    loss.backward()
    return float(loss), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def test_padding_changes_no_gradient(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    batch = encoded(mine, tiny_stream)[0][:3]
    loss, expected = _gradients(mine, batch)
    assert all(g.abs().max() > 0 for g in expected)
    for width in (40, 80):
        its_loss, found = _gradients(mine, batch, width)
        assert its_loss == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_examples_in_a_batch_do_not_see_each_other(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    batch = encoded(mine, tiny_stream)[0][:4]
    loss, together = _gradients(mine, batch)
    alone = [_gradients(mine, [example]) for example in batch]
    assert sum(its_loss for its_loss, _ in alone) == pytest.approx(loss, rel=1e-6)
    added = [torch.stack(parts).sum(0) for parts in zip(*(grads for _, grads in alone), strict=True)]
    torch.testing.assert_close(together, added, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_gives_no_gradient(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    loss = TargetLoss(shift=not mine.encoder_decoder)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    nothing = loss({"logits": logits}, torch.full((2, 3), -100), 0)
    nothing.backward()
    assert float(nothing) == 0 and not logits.grad.any()


def test_the_order_is_a_function_of_its_arguments():
    lengths = [(7 * i) % 31 + 1 for i in range(53)]
    order = training_order(lengths, epochs=3, batch_size=4, seed=5)
    state = torch.random.get_rng_state()
    torch.manual_seed(99)
    assert training_order(lengths, epochs=3, batch_size=4, seed=5) == order
    torch.random.set_rng_state(state)
    assert training_order(lengths, epochs=3, batch_size=4, seed=6) != order
    for epoch in range(3):
        assert sorted(order[epoch * 53 : (epoch + 1) * 53]) == list(range(53))


def test_memory_batches_visit_every_example_equally_often():
    examples = [Encoded([i], [1], cut=False) for i in range(10)]
    batches = MemoryBatches(examples, batch_size=4, seed=3)
    seen = [example.input_ids[0] for _ in range(5) for example in batches.next()]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    again = MemoryBatches(examples, batch_size=4, seed=3)
    assert [e.input_ids[0] for _ in range(5) for e in again.next()] == seen
    assert batches.per_pass == 3 and MemoryBatches(examples[:3], 4, 0).per_pass == 1

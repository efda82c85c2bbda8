"""FOREVER, AIMMerging, VR-MCL and SLAO under the real Trainer against their equations written out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.config import TrainingConfig
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.running.one_task import train_task
from tests.parity.driven import DECAY, RATE, driven, seen
from tests.parity.literal import Values, loss_of, trainable
from tests.reference import aim, forever, slao, vr_mcl
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def backbone(tiny_folder_llama: Path, quick: None) -> Backbone:
    return load(tiny_folder_llama)


def _close(reached: dict[int, Values], expected: list[Values]) -> None:
    assert len(reached) == len(expected) == 6
    for step, wanted in enumerate(expected, start=1):
        torch.testing.assert_close(reached[step], wanted, rtol=1e-4, atol=2e-6)
    # what the tolerance would hide
    assert max(float((reached[1][n] - v).abs().max()) for n, v in reached[6].items()) > 1e-3


@pytest.mark.parametrize("anchor", [0.0, 5.0])
def test_forever_replays_where_the_equations_say(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, anchor: float
):
    settings = {"name": "forever", "day_steps": 2, "schedule": [1.0, 1.8], "anchor": anchor, "gamma": 2.0}
    reached, done = driven(backbone, tiny_stream, settings, tmp_path)
    theta, steps, memory, _ = seen(backbone, tiny_stream)
    expected, events = forever.forever(
        theta,
        loss_of(adapted(backbone)),
        steps,
        memory,
        rate=RATE,
        weight_decay=DECAY,
        day_steps=2,
        marks=[1.0, 1.8],
        # five examples are two batches of four, a day is two steps
        event_steps=2,
        base=anchor,
        gamma=2.0,
        smoothing=0.05,
        low=0.5,
        high=3.0,
    )
    _close(reached, expected)
    told = [event for event in done.events if event["kind"] == "replay event"]
    assert [event["step"] for event in told] == [step for step, _ in events] and len(events) == 2
    assert done.extra_passes == 4 and done.replayed == 16


@pytest.mark.parametrize("kappa", [0.0, 1.01])
def test_aimmerging_merges_where_the_code_does(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, kappa: float
):
    settings = {"name": "aimmerging", "interval": 2, "memory_steps": 3, "threshold": kappa}
    reached, done = driven(backbone, tiny_stream, settings, tmp_path)
    theta, steps, memory, probes = seen(backbone, tiny_stream)
    expected, merges = aim.aimmerging(
        theta,
        loss_of(adapted(backbone)),
        steps,
        memory,
        probes,
        rate=RATE,
        weight_decay=DECAY,
        interval=2,
        memory_steps=3,
        kappa=kappa,
    )
    _close(reached, expected)
    told = [(event["step"], event["flags"]) for event in done.events if event["kind"] == "merge"]
    assert told == merges and merges
    # six probes are two passes
    assert done.extra_passes == 3 * len(merges) + 2 and done.replayed == 12 * len(merges)


@pytest.mark.parametrize(("second", "accumulation"), [(False, 2), (True, 1)])
def test_vr_mcl_takes_the_meta_gradient_of_the_equations(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, second: bool, accumulation: int
):
    settings = {
        "name": "vr-mcl",
        "second_order": second,
        "inner_size": 3,
        "alpha": 0.5,
        "alpha_lr": 0.25,
        "clip": 2.0,
    }
    reached, done = driven(
        backbone,
        tiny_stream,
        settings,
        tmp_path,
        weight_decay=0.0,
        max_grad_norm=0.3,
        accumulation=accumulation,
    )
    theta, steps, memory, _ = seen(backbone, tiny_stream)
    loss = loss_of(adapted(backbone))
    expected = vr_mcl.vr_mcl(
        theta,
        loss,
        steps,
        memory,
        rate=RATE,
        inner=lambda batch: [batch[start : start + 3] for start in range(0, len(batch), 3)],
        c=0.15,
        start=0.5,
        alpha_lr=0.25,
        clip=2.0,
        limit=0.3,
        second=second,
        outer=lambda values, one, two: loss(values, one + two),
    )
    _close(reached, [values for values, _, _ in expected])
    assert done.replayed == 4 * 6
    # of each batch the inner pass, and one over batch and memory for each of its minibatches
    work = [(2 if second else 1) + 2 * -(-len(batch) // 3) for batch in steps]
    # at two points, but for the first step
    assert done.extra_passes == 2 * sum(work) - work[0]


@pytest.mark.parametrize("keep", [False, True])
def test_slao_starts_trains_and_merges_as_the_equations_say(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, keep: bool
):
    mine = adapted(backbone)
    first, second, _ = encoded(mine, tiny_stream)
    method = build_method("slao", {"keep_function": keep})
    settings = TrainingConfig(learning_rate=RATE, epochs=1, batch_size=4, scheduler="constant")
    train = partial(train_task, folder=tmp_path)
    tuned: list[Values] = []
    for index, examples in enumerate((first, second, first)):
        if index:
            before = trainable(mine)
            b_before = {n: v for n, v in tuned[-1].items() if "lora_B" in n}
        # what training alone makes of the start
        train(mine.model, mine, method, settings, index=index, name=str(index), current=examples)
        plain = adapted(backbone)
        with torch.no_grad():
            for name, p in plain.model.named_parameters():
                if p.requires_grad and index:
                    p.copy_(_start(name, before, b_before, keep))
        train(
            plain.model, plain, build_method("sequential"), settings, index=index, name="x", current=examples
        )
        tuned.append(trainable(plain))
        for name, value in trainable(mine).items():
            wanted = tuned[-1][name]
            if "lora_B" in name:
                wanted = torch.tensor(slao.merged([each[name].tolist() for each in tuned]))
            torch.testing.assert_close(value, wanted, rtol=1e-3, atol=3e-6)


def _start(name: str, before: Values, b_before: Values, keep: bool) -> Any:
    """The value that a parameter starts a later task with."""
    q, r = slao.orthonormal_rows(before[name.replace("lora_B", "lora_A")].tolist())
    if "lora_A" in name:
        return torch.tensor(q)
    b = b_before[name]
    return torch.tensor(slao.times(b.tolist(), r)) if keep else b

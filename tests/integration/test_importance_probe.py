"""The importance of a task at later moments, in whole runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from kifuse.errors import ConfigError
from kifuse.reporting.method_pictures import probed
from kifuse.reporting.plots import Heatmap
from kifuse.running import importance_probe
from kifuse.running.runner import run
from tests.runs import StopIn, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")
PROBED = {"probe_importance": ["colour", "fruit"], "probe_examples": 5, "probe_stages": 1}


def series(record: Any) -> list[list[str]]:
    """The moments that are on record, of each task."""
    return [
        [
            key.removeprefix("probed importance of ")
            for key in task.per_tensor.get("series", {})
            if "probed" in key
        ]
        for task in record.tasks
    ]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_it_is_measured_at_the_task_and_at_every_later_moment(
    request: pytest.FixtureRequest,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
):
    folder = request.getfixturevalue(f"tiny_folder_{family}")
    seen: list[tuple[float, float]] = []
    original = importance_probe.importance

    def both(model: Any, backbone: Any, shards: Any, rows: Any, batch_size: int) -> torch.Tensor:
        found = original(model, backbone, shards, rows, batch_size)
        seen.append((float(found.sum()), literal(model, backbone, shards.params, rows)))
        return found

    monkeypatch.setattr(importance_probe, "importance", both)
    config = make_config(folder, tiny_stream, tmp_path / "run", {"name": "sequential"}, record=PROBED)
    record = run(config)
    first, second, third = series(record)
    steps = [f"step {round((task.train_steps or 0) / 2)}" for task in record.tasks]
    assert first == [f"colour, {steps[0]}", "colour, end"]
    assert second == [f"{name}, {at}" for at in (steps[1], "end") for name in ("colour", "fruit")]
    assert third == [f"{name}, {at}" for at in (steps[2], "end") for name in ("colour", "fruit")]
    for found, wanted in seen:
        assert found == pytest.approx(wanted, rel=1e-3) and wanted > 0
    events = [e for e in record.tasks[1].events if e["kind"] == "importance probe"]
    assert [(e["moment"], e["examples"], e["passes"]) for e in events] == [(steps[1], 10, 4), ("end", 10, 4)]
    later = [
        row
        for label, at in (("2 fruit", steps[1]), ("3 weather", steps[2]))
        for row in (f"{label}, {at}", f"after {label}")
    ]
    plots = [plot for plot in probed(record) if isinstance(plot, Heatmap)]
    assert [plot.rows for plot in plots] == [[f"1 colour, {steps[0]}", "after 1 colour", *later], later]


def literal(model: Any, backbone: Any, params: Any, rows: Any) -> float:
    """One example after another: sum over tensors of the mean |theta dL/dtheta|."""
    model = copy.deepcopy(model).eval()
    named = dict(model.named_parameters())
    tensors = [named[name] for name in params.names]
    total, count = torch.zeros(()), 0
    for row in rows:
        asked, target = torch.tensor([row.input_ids]), torch.tensor([row.target_ids])
        if backbone.encoder_decoder:
            logits = model(input_ids=asked, labels=target).logits[0]
        else:
            logits = model(input_ids=torch.cat([asked, target], dim=1)).logits[0, asked.shape[1] - 1 : -1]
        total = total + functional.cross_entropy(logits.float(), target[0], reduction="sum")
        count += target.shape[1]
    grads = torch.autograd.grad(total / count, tensors, allow_unused=True)
    moved = [(p * g).detach() for p, g in zip(tensors, grads, strict=True) if g is not None]
    return sum(float(each.abs().mean()) for each in moved)


def test_it_changes_nothing_and_goes_on_after_a_crash(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    method = {"name": "kiflora"}
    plain = make_config(tiny_folder_llama, tiny_stream, tmp_path / "plain", method)
    run(plain)
    whole = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "whole", method, record=PROBED))
    config = make_config(
        tiny_folder_llama,
        tiny_stream,
        tmp_path / "parts",
        method,
        record=PROBED,
        training={"checkpoint_minutes": 0.0},
    )
    with pytest.raises(Stopped):
        run(config, progress=StopIn("fruit"))
    parts = run(config)
    assert series(parts) == series(whole)
    for one, other in zip(whole.tasks, parts.tasks, strict=True):
        assert one.per_tensor["series"] == other.per_tensor["series"]
    first, second = adapter(tmp_path / "plain"), adapter(tmp_path / "whole")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("method", "tasks", "words"),
    [
        ("sequential", ["fruits"], r"record.probe_importance: found 'fruits', .*Did you mean 'fruit'"),
        ("joint", ["fruit"], r"record.probe_importance: found fruit with a method that learns all tasks"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, method: str, tasks: list[str], words: str
):
    config = make_config(
        tiny_folder_llama, tiny_stream, tmp_path, {"name": method}, record={"probe_importance": tasks}
    )
    with pytest.raises(ConfigError, match=words):
        run(config)

"""EWC, OGD and MIGU under the real Trainer: what each step was, against their equations written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.errors import RunError
from kifuse.methods.ewc import EWC
from kifuse.methods.migu import MIGU
from kifuse.methods.ogd import OGD
from kifuse.models.loading import Backbone
from kifuse.running.runner import run
from tests.parity.literal import Values, task_batches
from tests.parity.per_example_literal import OneByOne
from tests.parity.seen import train_two
from tests.reference import ewc, migu, ogd
from tests.runs import make_config
from tests.two_tasks import load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def _flat(values: Values) -> Tensor:
    return torch.cat([v.flatten() for v in values.values()])


@pytest.mark.parametrize("settings", [{}, {"online": True, "gamma": 0.5}], ids=str)
def test_ewc_pulls_each_parameter_by_its_fisher_information(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, settings: dict[str, Any]
):
    method = EWC(penalty=50.0, **settings)
    mine, (first, second) = train_two(backbone, tiny_stream, method, tmp_path, max_grad_norm=0.05)
    literal = OneByOne(mine)
    leaves = {name: value.clone().requires_grad_() for name, value in first.end.items()}
    wanted = ewc.fisher(
        list(leaves.values()),
        [lambda e=e: literal.log_likelihood(leaves, e) for e in first.examples],
    )
    fisher = dict(zip(leaves, wanted, strict=True))
    assert all(
        f.equal(g) for one in (first,) for f, g in zip(_pairs(one.raw), _pairs(one.changed), strict=True)
    )
    pulled = 0.0
    for values, raw, changed in zip(second.values, second.raw, second.changed, strict=True):
        # the Trainer has clipped the task's gradient, and not the penalty's
        assert float(_flat(raw).norm()) <= 0.0501
        for name, theta in values.items():
            pull = ewc.pull(theta, [fisher[name]], [first.end[name]], 50.0)
            pulled = max(pulled, float(pull.abs().max()))
            torch.testing.assert_close(changed[name].double(), raw[name] + pull, rtol=1e-3, atol=1e-5)
    assert pulled > 0.01
    # the first step begins where the first task has ended
    assert all(torch.equal(second.raw[0][n], second.changed[0][n]) for n in second.raw[0])


def _pairs(steps: list[Values]) -> list[Tensor]:
    return [g for step in steps for g in step.values()]


def test_ogd_steps_beside_the_gradients_of_the_first_task_s_logits(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    mine, (first, second) = train_two(backbone, tiny_stream, OGD(per_task=11), tmp_path, weight_decay=0.1)
    literal = OneByOne(mine)
    kept = [_flat(literal.gradient(literal.gold_logits, first.end, e)) for e in first.examples]
    basis = ogd.gram_schmidt(kept)
    assert first.events[-1] == {"kind": "basis", "step": 6, "vectors": len(basis), "kept_share": 1.0}
    for values, raw, changed, moved in zip(
        second.values, second.raw, second.changed, second.moved, strict=True
    ):
        wanted = ogd.project(_flat(raw), basis)
        torch.testing.assert_close(_flat(changed).double(), wanted, rtol=1e-2, atol=1e-5)
        step = _flat(moved) - _flat(values)
        assert float(step.norm()) > 1e-3
        for g in kept:
            assert abs(float(step @ g)) < 2e-4 * float(step.norm() * g.norm())


@pytest.mark.parametrize("mask", ["update", "gradient"])
def test_migu_moves_the_rows_with_the_largest_outputs(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, mask: Any
):
    """Of every matrix of every step, under AdamW with weight decay and accumulation."""
    mine, (first, second) = train_two(
        backbone, tiny_stream, MIGU(mask=mask), tmp_path, weight_decay=0.1, accumulation=2
    )
    assert all(torch.equal(a, b) for a, b in zip(_pairs(first.raw), _pairs(first.changed), strict=True))
    batches = task_batches(second.examples, epochs=2, seed=1)
    for step, batch in enumerate(batches):
        outputs = _outputs(mine, second.values[step], batch)
        for name, before in second.values[step].items():
            n, wanted = second.magnitudes[step][name], migu.magnitude(outputs[name])
            assert n is not None
            torch.testing.assert_close(n.double(), wanted, rtol=1e-4, atol=1e-5)
            kept = migu.kept_rows(wanted, 0.7)
            for j in range(len(before)):
                assert bool(second.changed[step][name][j].any()) == (j in kept)
                stayed = torch.equal(before[j], second.moved[step][name][j])
                assert stayed == (j not in kept and mask == "update")


def _outputs(mine: Backbone, theta: Values, batch: list[Any]) -> dict[str, list[Tensor]]:
    """The outputs of each trained matrix at the values of a step, token by token and without padding."""
    literal, seen = OneByOne(mine), dict[str, list[Tensor]]()
    for name in theta:
        module = literal.model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_hook(lambda _, __, y, n=name: seen.setdefault(n, []).extend(y.detach()[0]))
    with torch.no_grad():
        for example in batch:
            literal.logits(theta, example)
    return seen


@pytest.mark.parametrize("kind", ["full", "ia3"])
def test_other_kinds_of_adapters_are_protected_or_refused(
    tiny_folder_t5: Path, tiny_stream: Path, tmp_path: Path, kind: Any
):
    """T5's own weights, its head tied to its embedding; and (IA)3, which has no output units to hold back."""
    adapter_config = {"adapter": {"kind": kind}}
    for name, more in (("ewc", {"examples": 3}), ("ogd", {"per_task": 3}), ("migu", {})):
        config = make_config(
            tiny_folder_t5, tiny_stream, tmp_path / name, {"name": name, **more}, model=adapter_config
        )
        if (name, kind) == ("migu", "ia3"):
            with pytest.raises(RunError, match="no linear layer is trained"):
                run(config)
        else:
            record = run(config)
            assert record.status == "finished" and all(task.loss for task in record.tasks)

"""One of two processes that run a user's script together, with a model that FSDP2 has cut into pieces."""

from __future__ import annotations

import contextlib
import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from kifuse.driving.finite_guard import largest_gradients
from kifuse.driving.optimizer_moments import load_moments, moments
from kifuse.driving.shards import Shards, joined
from kifuse.errors import RunError
from kifuse.methods.parameters import Parameters
from tests.months import OWN, Died, script
from tests.tiny import build_tokenizer

INTERRUPTED = "recurrent-kif, own optimizer"
NAMES = ["sequential", "kif-m", "kiflora", "recurrent-kif", INTERRUPTED, "aimmerging", "slao", "migu"]
NAMES += ["ewc", "ogd", "gpm", "lwf", "der++", "vr-mcl", "kif, single examples"]
"""The methods that are tested; together they use every hook, both optimizers of a memory step, and everything
that a method may need of a model in pieces."""
REFUSED = {"on-policy-repair": "different lengths", "vr-mcl, second order": "what torch can differentiate"}
"""Methods that no model in pieces can serve, and what their refusal says."""
SHAPES = [(5, 3), (1, 4), (2, 7, 2), (6,), (3, 1)]
"""Shapes of tensors that two processes cut evenly, unevenly, and so that one process has nothing."""


def cut_by_accelerate() -> None:
    """Make every later Trainer of this process cut its model with FSDP2, as `accelerate launch` does.

    Accelerate does it only for processes with a device of their own, so it is told that these have one.
    """
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    original = AcceleratorState.__init__

    def made(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.fsdp_plugin = plugin
        for state in (AcceleratorState._shared_state, PartialState._shared_state):
            state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = made  # type: ignore[method-assign]
    # what the launcher sets
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }


def months(
    folder: Path, name: str, *, dies_at: int | None = None, accumulation: int = 1
) -> dict[str, Tensor]:
    """Run two months of a script with batches of four over all processes; the second may be interrupted once.

    Returns:
        The whole weights after the second month.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    changes: dict[str, Any] = {
        "per_device_train_batch_size": 4 // processes // accumulation,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        # checkpoints take longer than the training
        "save_strategy": "steps" if name == INTERRUPTED else "no",
        # mixed rows must fill the batches: two processes do not share a short batch as one takes it
        "per_task": 4 if name == "der++" else 5,
    }
    go = partial(script, build_tokenizer(), folder, settings=OWN[name], dropout=0.0, **changes)
    go(month=1)
    _together()
    if dies_at is not None:
        with contextlib.suppress(Died):
            go(month=2, dies_at=dies_at)
        _together()
    found = go(month=2, resume=dies_at is not None)
    return {name: joined(tensor).clone() for name, tensor in found.items()}


def _together() -> None:
    """Wait until the other process has written its files."""
    if dist.is_initialized():
        dist.barrier()


def cut_parameters(mesh: DeviceMesh) -> tuple[list[Tensor], list[nn.Parameter]]:
    """Make tensors as a whole and cut into pieces; all but the last have gradients."""
    torch.manual_seed(0)
    whole = [torch.randn(shape) for shape in SHAPES]
    cut = [nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value in whole]
    for value, p in zip(whole[:-1], cut, strict=False):
        p.grad = distribute_tensor(value * 2, mesh, [Shard(0)])
    return whole, cut


def check_pieces(mesh: DeviceMesh) -> None:
    """Check that a method sees whole tensors, and that its changes arrive in the pieces, gradients too."""
    whole, cut = cut_parameters(mesh)
    shards = Shards((str(place), p) for place, p in enumerate(cut))
    assert shards.cut and shards.params.shapes == [tuple(value.shape) for value in whole]
    with shards.whole() as params:
        for value, p in zip(whole, params.tensors, strict=True):
            assert torch.equal(p.detach(), value)
        for value, grad in zip(whole[:-1], params.grads, strict=False):
            assert grad is not None and torch.equal(grad, value * 2)
        assert params.grads[-1] is None
        params.assign([value + 1 for value in whole])
        params.tensors[0].grad = None
        params.grads[1].mul_(3)
        params.tensors[-1].grad = whole[-1] * 5
        with shards.apart() as own:
            assert torch.equal(joined(own.tensors[0].detach()), whole[0] + 1)
            with torch.no_grad():
                piece = own.tensors[0].to_local()
                piece.add_(1)
        assert torch.equal(params.tensors[0].detach(), whole[0] + 2)
    assert cut[0].grad is None
    assert torch.equal(joined(cut[1].grad), whole[1] * 6)
    assert torch.equal(joined(cut[-1].grad), whole[-1] * 5)
    largest = largest_gradients(shards.own)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    expected = [0.0, *(float(g.abs().max()) for g in (whole[1] * 6, *(v * 2 for v in whole[2:4])))]
    assert largest.tolist() == [*expected, float((whole[-1] * 5).abs().max())]


def check_gradients() -> None:
    """Check that gradients and other values in the pieces of a model leave it as it was."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    cut = copy.deepcopy(whole)
    for layer in (cut[0], cut[2], cut):
        fully_shard(layer, reshard_after_forward=False)
    shards = Shards(cut.named_parameters())
    inputs = torch.randn(4, 3)
    cut(inputs).sum().backward()
    before = [joined(p.grad) for p in cut.parameters()]
    other = [value * 2 for value in shards.params.clone()]
    for values in (None, other, None):
        if values is not None:
            Parameters(whole.named_parameters()).assign(values)
        with shards.whole(), shards.holding(cut, values):
            found = shards.gradients(cut(inputs).square().sum())
        wanted = torch.autograd.grad(whole(inputs).square().sum(), list(whole.parameters()))
        torch.testing.assert_close(found, list(wanted))
        Parameters(whole.named_parameters()).assign([value / 2 for value in other])
        for p, value, grad in zip(cut.parameters(), other, before, strict=True):
            assert torch.equal(joined(p.detach()), value / 2) and torch.equal(joined(p.grad), grad)
    with shards.whole() as params:
        params.assign(other)
        with shards.holding(cut), torch.no_grad():
            doubled = cut(inputs)
    Parameters(whole.named_parameters()).assign(other)
    assert torch.equal(doubled, whole(inputs))
    assert shards.gradients(cut[2](torch.ones(1, 5)).sum())[0] is None


def check_moments(mesh: DeviceMesh) -> None:
    """Check that the moments of pieces are saved as whole tensors, and come back as pieces."""
    _, cut = cut_parameters(mesh)
    named = [(str(place), p) for place, p in enumerate(cut)]
    optimizer, other = torch.optim.AdamW(cut), torch.optim.AdamW(cut)
    optimizer.step()
    kept = moments(optimizer, named)
    assert {n: t.shape for n, t in kept.items() if n.endswith("exp_avg")} == {
        f"{place} exp_avg": torch.Size(shape) for place, shape in enumerate(SHAPES[:-1])
    }
    load_moments(other, named, kept)
    for p in cut[:-1]:
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = other.state[p][key], optimizer.state[p][key]
            assert torch.equal(found.to_local(), expected.to_local())


def check_refusals(folder: Path, mesh: DeviceMesh) -> None:
    """Check that set-ups that cannot be right are refused, with a way that works."""
    for name, why in REFUSED.items():
        message = _refused(lambda name=name: months(folder / name, name))
        assert why in message and "Use " in message, message
    columns = nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh, [Shard(1)]))
    assert "the.weight: cut as" in _refused(lambda: Shards([("the.weight", columns)]))
    same = nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh, [Replicate()]))
    assert "the.weight: cut as" in _refused(lambda: Shards([("the.weight", same)]))
    _, cut = cut_parameters(mesh)
    mixed = [("cut", cut[0]), ("plain", nn.Parameter(torch.zeros(2)))]
    assert "plain: not cut" in _refused(lambda: Shards(mixed))


def _refused(call: Any) -> str:
    try:
        call()
    except RunError as error:
        return str(error)
    raise AssertionError("it was not refused")


def train_all(output: Path) -> None:
    """Check the pieces, then train with each method; every later model of this process is cut."""
    mesh = init_device_mesh("cpu", (2,))
    check_pieces(mesh)
    check_moments(mesh)
    check_gradients()
    cut_by_accelerate()
    check_refusals(output / "refused", mesh)
    cases: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in NAMES}
    cases |= {"again": (INTERRUPTED, {"dies_at": 5}), "gathered": ("recurrent-kif", {"accumulation": 2})}
    for case, (name, changes) in cases.items():
        folder = output / case
        save_file(months(folder, name, **changes), folder / f"{dist.get_rank()}.safetensors")

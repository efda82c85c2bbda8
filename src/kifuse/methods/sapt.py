"""SAPT (arXiv 2401.08295): a LoRA pair for each task, and an attention over the pairs that is preserved.

    e(x) = the largest value of each dimension of the frozen input embeddings of x
    q(x) = LN(SiLU(W_up W_down e(x)))
    a(x) = softmax([k_1; ...; k_t] q(x) / sqrt(d)),        one for the whole network
    h    = W x + s sum_i a_i B_i A_i x
    L    = L_task + kappa sum_(j<t) mean over x in M_j of KL(abar_j || a(x))

abar_j is the mean of a over task j's examples at the time when j had been learned, with 0 for later tasks.
M_j are the kept inputs of task j; their answers are not used. Pair t, key k_t and the projection to q are
trained; older pairs and keys are frozen.

| symbol | setting |
| --- | --- |
| kappa | `reflection` |
| rows of W_down | `bottleneck` |
| r, alpha, dropout, adapted layers | `model.adapter` |
| M_j: how many inputs, real or written | `memory` |

The kept inputs are read once before a task, since a(x) needs only their e(x). After that, all of them count
in every step. Keys start uniformly distributed between -1 and 1.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.asked import in_full, largest_of
from kifuse.adapters.by_task import ByTask
from kifuse.adapters.mixed_lora import MixedLora
from kifuse.methods.base import SETTINGS, Method, Need, NotNegative, OldData
from kifuse.methods.context import Batch, Context, TaskInfo
from kifuse.methods.kept import Kept, Unsaved
from kifuse.methods.shown import Event, Shown


class Attention(ByTask):
    """The keys of all tasks, and the projection to queries that all tasks share.

    Args:
        width: d.
        bottleneck: Number of rows of W_down.
        draw: Random generator for the starting values.
    """

    key: nn.Parameter

    def __init__(self, width: int, bottleneck: int, draw: torch.Generator) -> None:
        super().__init__()
        self.add("key", torch.zeros(width))
        self.down, self.up = (
            nn.Linear(*shape, bias=False) for shape in ((width, bottleneck), (bottleneck, width))
        )
        self.norm = nn.LayerNorm(width)
        with torch.no_grad():
            for layer in (self.down, self.up):
                # initialised like torch's linear layers, but drawn on the CPU
                bound = layer.in_features**-0.5
                layer.weight.copy_((2 * torch.rand(layer.weight.shape, generator=draw) - 1) * bound)
        self.renew(draw)

    @torch.no_grad()
    def renew(self, draw: torch.Generator) -> None:
        """Start a task's key; the projection is trained further."""
        self.key.copy_(2 * torch.rand(self.key.shape, generator=draw) - 1)

    def forward(self, summary: Tensor) -> Tensor:
        """Compute a of inputs with the given e, `(rows, d)`: `(rows, t)`."""
        with in_full(summary):
            query = self.norm(functional.silu(self.up(self.down(summary))))
            return (query @ self.all_of("key").T / summary.shape[-1] ** 0.5).softmax(dim=-1)


class AttendedLora(MixedLora):
    """LoRA pairs, weighted by an attention."""

    summary: Any = None
    """e of each row of the last input, `(rows, d)`."""

    def __init__(self, settings: Any, method: Any = None) -> None:
        super().__init__(settings, method)
        self.taken = Counter[int]()

    def router(self, width: int, draw: torch.Generator) -> Attention:
        """Make the attention."""
        return Attention(width, self.method.bottleneck, draw)

    def weigh(self, embedded: Tensor, asked: Tensor) -> Tensor:
        """Compute a of each row."""
        self.summary = largest_of(embedded, asked)
        weights = self.attention(self.summary)
        self.count(weights.argmax(dim=1))
        return weights

    @property
    def attention(self) -> Attention:
        """The attention module on the model."""
        found: Attention = self.model.router
        return found


def held(average: Tensor, attention: Tensor) -> Tensor:
    """Compute KL(abar || a); abar is 0 for tasks that came later.

    Args:
        average: abar of each row, `(rows, t)`.
        attention: a, `(rows, t)`; the result is differentiable in it.

    Returns:
        `(rows,)`.
    """
    return (torch.xlogy(average, average) - average * attention.log()).sum(dim=-1)


@final
@dataclass(kw_only=True, config=SETTINGS)
class SAPT(Method):
    """A LoRA pair for each task, and an attention over all pairs that stays stable on kept inputs."""

    reflection: NotNegative = 0.5
    bottleneck: Annotated[int, Field(ge=1)] = 100

    adapter = AttendedLora
    plain_first_task = False
    shown = Shown(
        events=(
            Event("attention", ("the task's own pair weighs {own:.0%} on its examples",)),
            Event("kept inputs", ("attention held on {inputs} kept input(s)", "{unknown} of no known task")),
        ),
        logged={"reflection": "attention off by {reflection:.3g}"},
    )
    _averages: Kept[dict[str, Any] | None] = None  # abar by task, in the order of learning
    _summaries: Unsaved[Tensor | None] = None  # e of each kept input
    _wanted: Unsaved[Tensor | None] = None  # abar of each kept input; `_shares` is 1/|M_j| of each
    _shares: Unsaved[Tensor | None] = None

    @property
    def old_data(self) -> OldData:
        """Inputs of earlier tasks, which are read in separate passes."""
        return "steps" if self.reflection else "none"

    @property
    def needs(self) -> frozenset[Need]:
        """The task's examples once more at its end, and with reflection the memory task by task."""
        return frozenset({"examples", "by task"} if self.reflection else {"examples"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Forward passes over kept inputs and over the task's examples: a third of a step's work each."""
        return (memory_batches + -(-task.examples // task.batch_size)) // 3

    def begin_task(self, ctx: Context) -> None:
        """Read the kept inputs."""
        self._summaries = None
        averages, adapter = self._averages or {}, ctx.adapter
        if not averages or not self.reflection:
            return
        found: dict[str, list[Tensor]] = {}
        for name, batch in ctx.memory_examples():
            ctx.forward(batch)
            found.setdefault(name, []).append(adapter.summary)  # type: ignore[attr-defined]
        known = {name: torch.cat(found[name]) for name in averages if name in found}
        unknown = sum(len(each) for name, parts in found.items() if name not in averages for each in parts)
        ctx.event(
            "kept inputs", inputs=sum(map(len, known.values())), **({"unknown": unknown} if unknown else {})
        )
        if not known:
            return
        self._summaries = torch.cat(list(known.values()))
        device, tasks = self._summaries.device, len(averages) + 1
        rows = [averages[name] for name, each in known.items() for _ in each]
        self._wanted = torch.tensor([[*row, *[0.0] * (tasks - len(row))] for row in rows], device=device)
        self._shares = torch.tensor([1 / len(each) for each in known.values() for _ in each], device=device)

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Add the term that keeps the attention on kept inputs as it was."""
        if self._summaries is None or self._wanted is None or self._shares is None:
            return ctx.target_loss
        attention = ctx.adapter.attention(self._summaries)  # type: ignore[attr-defined]
        apart = (self._shares * held(self._wanted, attention)).sum()
        # repeated for each target token, so that the mean over the step's target tokens is the number itself
        spread = apart.expand(int(ctx.target_counts(batch).sum()))
        if ctx.logging:
            ctx.log(reflection=float(apart.detach()))
        return ctx.target_loss + self.reflection * ctx.mean_over_targets(spread)

    def end_task(self, ctx: Context) -> None:
        """Record the mean attention of the task's examples."""
        total, count = torch.zeros(()), 0
        for batch in ctx.task_examples():
            ctx.forward(batch)
            attention = ctx.adapter.weights  # type: ignore[attr-defined]
            total, count = total.to(attention) + attention.sum(dim=0), count + len(attention)
        average = (total / count).tolist()
        self._averages = {**(self._averages or {}), ctx.task.name: average}
        ctx.event("attention", average=average, own=average[-1])

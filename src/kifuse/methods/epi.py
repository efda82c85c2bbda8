"""EPI (ACL 2023), called EIP in KIF's tables: a prefix for each task; the input decides which one is used.

    task t learns a prefix P_t of its own,      L = cross-entropy; only P_t trains
    z(x)    = mean of the frozen model's last states over the tokens of x, read without a prefix
    mu_(t,c) = mean of z over the examples of task t with answer c
    Sigma_t = mean over c of the covariance of z around mu_(t,c);      Sigma = 1/T sum_t Sigma_t
    t(x)    = argmin_t min_c (z - mu_(t,c))^T Sigma^+ (z - mu_(t,c))

and x is read with P_t(x) only. Sigma^+ is the pseudo-inverse. If a task has many different answers, it has
one mean for all of them.

| symbol | setting |
| --- | --- |
| places of P_t in each layer | `length` |
| the most answers c that have means of their own | `answers` |
| what P_t begins as: drawn, P_(t-1), or the mean of P_1 to P_(t-1) | `start` |
| whether a test example's task is told instead of found out | `task_id` |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kifuse.adapters.asked import mean_of
from kifuse.adapters.by_task import ByTask
from kifuse.adapters.prefixes import OwnPrefix, TaskPrefixes
from kifuse.methods.base import SETTINGS, DataClass, Method, Need
from kifuse.methods.context import Context, TaskInfo
from kifuse.methods.kept import Kept
from kifuse.methods.shown import Event, Shown

LEAST = 1e-12
"""Directions with less than this share of the largest variance are dropped: their variance is rounding
noise."""


class KnownPrefix(OwnPrefix):
    """Prefixes, and the statistics that identify the task of an input.

    Attributes:
        means: mu of all tasks one after another, `(means, d)`.
        owners: The task of each mean, from 0, `(means,)`.
        spread: The sum of Sigma_t over the tasks, `(1, d, d)`; `(0, d, d)` before the end of the first task.
    """

    means: Tensor
    owners: Tensor
    spread: Tensor

    def __init__(self, start: Tensor, width: int) -> None:
        super().__init__(start)
        exact = {"dtype": torch.float64, "device": start.device}
        self.register_buffer("means", torch.empty(0, width, **exact))
        self.register_buffer("owners", torch.empty(0, dtype=torch.long, device=start.device))
        self.register_buffer("spread", torch.empty(0, width, width, **exact))

    def drop(self) -> None:
        """Remove all tasks."""
        super().drop()
        self.means, self.owners, self.spread = self.means[:0], self.owners[:0], self.spread[:0]


class IdentifiedPrefixes(TaskPrefixes):
    """Prefixes of all tasks; each input gets the prefix of the task that it is most similar to."""

    learning = False
    """Whether a task is being learned; then every input gets the prefix of that task."""
    features: Any = None
    """z of the last input that was read without a prefix, `(rows, d)`."""
    _bare_asked: Any = None
    _tasks: Any = None
    _all: Any = None
    _whitening: Any = None

    def __init__(self, settings: Any, method: Any = None) -> None:
        super().__init__(settings, method)
        self.taken = Counter[int]()

    def make(self, embeddings: Tensor, seed: int) -> KnownPrefix:
        """Make the first task's prefix; the statistics are empty."""
        return KnownPrefix(super().make(embeddings, seed).prefix.detach(), embeddings.shape[-1])

    @property
    def known(self) -> KnownPrefix:
        """The module on the model that holds the prefixes."""
        found: KnownPrefix = self.model.prefixes
        return found

    def choose(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> None:
        """Choose the current task's prefix while it is learned, later that of the told or identified task."""
        if self.goes_on:
            return
        self._tasks = None
        if self.told is not None:
            self._tasks = torch.full((len(ids),), min(self.told, self.known.earlier), device=ids.device)
        elif not self.learning and len(self.known.means):
            with self.without():
                self._read(ids, asked)
            self._tasks = self.identify(self.features).to(ids.device)
            self.count(self._tasks)
        self._all = None if self._tasks is None else self.known.all_of("prefix")

    def _read(self, ids: Tensor, asked: Tensor) -> None:
        """Let the frozen model read the prompt."""
        more: dict[str, Any] = {}
        if not self._encoder_decoder:
            more = {"use_cache": False, "position_ids": (asked.long().cumsum(dim=1) - 1).clamp(min=0)}
        with torch.no_grad():
            self.reader(input_ids=ids, attention_mask=asked.long(), **more)

    def of_rows(self, layer: int, which: int) -> Tensor:
        """See `TaskPrefixes.of_rows`."""
        if self._tasks is None:
            return self.known.prefix[layer, which]
        return self._all[self._tasks, layer, which]

    def _insert(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.bare:
            self._bare_asked = self.read(args, kwargs)[2]
        return super()._insert(reader, args, kwargs)

    def _cut(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.bare:
            self.features = mean_of(output.last_hidden_state, self._bare_asked)
        return super()._cut(reader, args, output)

    def identify(self, features: Tensor) -> Tensor:
        """Compute t(x) from z `(rows, d)`: `(rows,)` from 0, on the CPU."""
        known = self.known
        if self._whitening is None:
            self._whitening = whitening(known.spread[0].cpu() / (int(known.owners.max()) + 1))
        placed, means = (each.cpu().double() @ self._whitening for each in (features, known.means))
        # computed in float64 and pair by pair: otherwise a large z and its mean would cancel
        apart = torch.cdist(placed, means, compute_mode="donot_use_mm_for_euclid_dist")
        return known.owners.cpu()[apart.argmin(dim=1)]

    def get_to_know(self, features: Tensor, answers: Sequence[Hashable], most: int) -> int:
        """Store the statistics by which the current task's inputs are identified.

        Args:
            features: z of the task's examples, `(examples, d)`.
            answers: c of each example.
            most: If there are more different answers, the task gets one mean.

        Returns:
            The number of means.
        """
        known, z = self.known, features.double()
        places = {answer: place for place, answer in enumerate(dict.fromkeys(answers))}
        if len(places) > most:
            places = dict.fromkeys(answers, 0)
        group = torch.tensor([places[answer] for answer in answers], device=z.device)
        means, spread = means_and_spread(z, group)
        owner = torch.full((len(means),), known.earlier, device=z.device)
        known.means, known.owners = torch.cat([known.means, means]), torch.cat([known.owners, owner])
        known.spread = known.spread.sum(dim=0, keepdim=True) + spread
        self._whitening = None
        return len(means)

    def renew(self, part: ByTask, draw: torch.Generator) -> None:
        """Start the next prefix as `start` says; with "last" it stays as the task before left it."""
        if self.method.start == "random":
            super().renew(part, draw)
        elif self.method.start == "mean":
            self.known.prefix.copy_(self.known.past_prefix.mean(dim=0))

    def begin_task(self, index: int, seed: int) -> None:
        """Give every input the current task's prefix from now on."""
        super().begin_task(index, seed)
        self.learning = True

    def end_task(self) -> None:
        """Identify the task of each input again."""
        self.learning = False

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Remove all tasks."""
        super().restart(values)
        self.learning, self._whitening = False, None

    def load(self, folder: Path) -> None:
        """Load saved prefixes and the statistics that identify tasks."""
        super().load(folder)
        self.learning, self._whitening = False, None


def means_and_spread(z: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mu_c, and the mean over c of the covariance around it.

    Args:
        z: `(examples, d)`.
        group: c of each, from 0, `(examples,)`.

    Returns:
        `(c, d)` and `(d, d)`.
    """
    parts = [z[group == c] for c in range(int(group.max()) + 1)]
    means = torch.stack([part.mean(dim=0) for part in parts])
    apart = [part - mean for part, mean in zip(parts, means, strict=True)]
    return means, torch.stack([each.T @ each / len(each) for each in apart]).mean(dim=0)


def whitening(spread: Tensor) -> Tensor:
    """Compute W with |W^T v|^2 = v^T Sigma^+ v; if Sigma has no variance, that is |v|^2.

    Args:
        spread: Sigma, `(d, d)`, float64.

    Returns:
        `(d, rank)`.
    """
    variances, directions = torch.linalg.eigh(spread)
    kept = variances > LEAST * variances[-1].clamp(min=0.0)
    if not bool(kept.any()):
        return torch.eye(len(spread), dtype=spread.dtype)
    return directions[:, kept] / variances[kept].sqrt()


@final
@dataclass(kw_only=True, config=SETTINGS)
class EPI(Method):
    """A prefix for each task; the frozen model's states decide which prefix an input gets."""

    length: Annotated[int, Field(ge=1)] = 16
    answers: Annotated[int, Field(ge=1)] = 100
    start: Literal["random", "last", "mean"] = "random"
    task_id: bool = False

    adapter = IdentifiedPrefixes
    plain_first_task = False
    shown = Shown(
        events=(
            Event(
                "identification",
                ("{right:.0%} of the task's examples are found to be of it", "{means} mean(s)"),
            ),
        )
    )
    _names: Kept[list[str] | None] = None  # the tasks' names, in the order of learning

    @property
    def data_class(self) -> DataClass:
        """Depends on whether the task id is told."""
        return "task id given" if self.task_id else "replay-free"

    @property
    def needs(self) -> frozenset[Need]:
        """The method reads the task's examples once more at the end of the task."""
        return frozenset({"examples"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """A forward pass over the task's examples, a third of a step's work."""
        return -(-task.examples // task.batch_size) // 3

    def end_task(self, ctx: Context) -> None:
        """Store the statistics by which the task's inputs are identified."""
        adapter: Any = ctx.adapter
        features, answers = [], []
        with adapter.without():
            for batch in ctx.task_examples():
                outputs = ctx.forward(batch)
                features.append(adapter.features)
                answers += [tuple(gold.tolist()) for _, gold in ctx.targets(batch, outputs)]
        z = torch.cat(features)
        means = adapter.get_to_know(z, answers, self.answers)
        self._names = [*(self._names or []), ctx.task.name]
        taken = Counter(self._names[task] for task in adapter.identify(z).tolist())
        ctx.event(
            "identification",
            examples=len(z),
            means=means,
            by="answer" if means > 1 or len(set(answers)) == 1 else "task",
            right=taken[ctx.task.name] / len(z),
            found_to_be_of=dict(taken),
        )

"""SLAO (arXiv 2512.23017): one LoRA pair, started from the last fine-tuned one and merged after each task.

1. start of task i > 1: A_{ft,i-1}^T = Q R, the signs of Q's columns and R's rows chosen so that diag(R) > 0;
   A <- Q^T, so that A A^T = I_r, and B <- B_{ft,i-1}, the last fine-tuned B, not the merged one.
2. training of the pair on the task, with nothing else.
3. end: A_merge <- A_{ft,i}; B_merge <- B_merge + lambda(i) (B_{ft,i} - B_merge), lambda(i) = 1 / sqrt(i).
   B_merge A_merge is the model after the task: what is scored, saved and exported.

| symbol | setting |
| --- | --- |
| B at a task's start | `start`: "last-fine-tuned" (the paper) or "merged" (an ablation, a public package) |
| (none) | `keep_function`: B <- B R^T instead, beyond the paper |

Q^T has the row space of the previous A; it is not its orthogonal complement. R is dropped, so that the model
at a task's start, B Q^T, is not B A_{ft,i-1} = B R^T Q^T. `keep_function` puts R^T into B: the start is then
the model as the last task left it, or with `start="merged"` the merged one, which was scored.

There is no floor under lambda(i), which a public package puts at 0.1.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any, Literal, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Method, MethodState, StepContext, TaskInfo, refuse_other_task
from kifuse.methods.pairs import Pair, named_pairs
from kifuse.methods.parameters import Parameters


@final
@dataclass(kw_only=True, config=SETTINGS)
class SLAO(Method):
    """One LoRA pair a layer, orthonormal A at each start, B merged over the tasks."""

    start: Literal["last-fine-tuned", "merged"] = "last-fine-tuned"
    keep_function: bool = False

    _task: Any = field(default=None, init=False, repr=False)
    _tuned: Any = field(default_factory=dict, init=False, repr=False)
    _merged: Any = field(default_factory=dict, init=False, repr=False)

    def check(self, params: Parameters) -> None:
        """Refuse anything but LoRA pairs.

        Raises:
            ValueError: A trainable tensor belongs to no pair, or a layer has fewer inputs than ranks.
        """
        pairs = dict(named_pairs(params))
        paired = {id(p) for pair in pairs.values() for p in (pair.a, pair.b)}
        others = [name for name, p in params.pairs if id(p) not in paired]
        if others:
            raise ValueError(
                f"model.adapter.kind: SLAO merges LoRA pairs and nothing else, but {others[0]} and "
                f"{len(others) - 1} more are trained beside them; use kind lora or rslora."
            )
        for name, pair in pairs.items():
            if pair.a.dim() != 2:
                raise ValueError(
                    f"model.adapter.target_modules: SLAO merges LoRA of linear layers, and {name} is none."
                )
            rank, inputs = pair.a.shape
            if rank > inputs:
                raise ValueError(
                    f"model.adapter.rank: {rank} rows of {name} cannot be orthonormal in {inputs} inputs; "
                    f"use a rank of at most {inputs}."
                )

    @torch.no_grad()
    def begin_task(self, task: TaskInfo, params: Parameters) -> None:
        """Keep the merged B, and start from the last fine-tuned pair, from the second task on.

        Raises:
            ValueError: See `check`.
        """
        self.check(params)
        self._task = task.name
        if task.first:
            return
        self._merged = {name: pair.b.detach().clone() for name, pair in named_pairs(params)}
        for name, pair in named_pairs(params):
            # after the first task B_ft is the merged B
            tuned = self._tuned.get(name, self._merged[name]).to(pair.b.device)
            b = tuned if self.start == "last-fine-tuned" else self._merged[name]
            _start(pair, b, keep_function=self.keep_function)
        self._tuned = {}

    def continue_task(self, task: TaskInfo, params: Parameters) -> None:
        """Go on with the merged B that `load_state` found.

        Raises:
            ValueError: The state is of another task, of other parameters or not of a task's middle.
        """
        refuse_other_task(self.state().values.get("task"), task.name)
        wanted = {} if task.first else {name: pair.b for name, pair in named_pairs(params)}
        shapes = [{name: b.shape for name, b in each.items()} for each in (self._merged, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the method's state holds {len(self._merged)} merged matrices, expected {len(wanted)} of "
                "the model's shapes; training goes on only from the model and state of one moment."
            )
        self._merged = {name: self._merged[name].to(b.device) for name, b in wanted.items()}

    @torch.no_grad()
    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:
        """Merge: B_merge + lambda(i) (B_ft - B_merge) with the newest A."""
        weight = 1.0 / math.sqrt(task.index + 1)
        self._task = None
        if task.first:
            return  # lambda(1) = 1: the fine-tuned pair is the merged one
        self._tuned = {name: pair.b.detach().clone() for name, pair in named_pairs(ctx.params)}
        for name, pair in named_pairs(ctx.params):
            pair.b.copy_(torch.lerp(self._merged[name], self._tuned[name], weight))
        ctx.event("merge", weight_of_new=weight, drift=self._drift(ctx.params))
        self._merged = {}

    def _drift(self, params: Parameters) -> float:
        """How far training took the rows of A from orthonormal: the largest |A A^T - I| over the layers."""
        grams = [_gram(pair.a) for _, pair in named_pairs(params)]
        return max(float((gram - torch.eye(len(gram))).abs().max()) for gram in grams)

    def state(self) -> MethodState:
        """B_ft at the end of a task but the first; B_merge in its middle. Neither grows with T."""
        tensors = {f"tuned.{name}": b for name, b in self._tuned.items()}
        tensors |= {f"merged.{name}": b for name, b in self._merged.items()}
        return MethodState(tensors, {} if self._task is None else {"task": self._task})

    def load_state(self, state: MethodState) -> None:
        """Take back the last fine-tuned B, or the merged one."""
        self._task = state.values.get("task")
        self._tuned, self._merged = (
            {name.partition(".")[2]: b for name, b in state.tensors.items() if name.startswith(f"{kind}.")}
            for kind in ("tuned", "merged")
        )


def _start(pair: Pair, b: Tensor, *, keep_function: bool) -> None:
    """A <- Q^T and B <- B, or B R^T, of A^T = Q R with diag(R) > 0."""
    wide = torch.promote_types(pair.a.dtype, torch.float32)
    q, r = torch.linalg.qr(pair.a.detach().to(wide).mT)
    # a rank that has died has a 0 there, and keeps its sign
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(wide)
    pair.a.copy_((q * signs).mT)
    pair.b.copy_(b.to(wide) @ (signs.unsqueeze(1) * r).mT if keep_function else b)


def _gram(a: Tensor) -> Tensor:
    """A A^T, `(r, r)`, on the CPU."""
    return (a.detach().float() @ a.detach().float().mT).cpu()

"""SLAO (arXiv 2512.23017): one LoRA pair, started from the last fine-tuned pair, merged after each task.

1. start of task i > 1: A_{ft,i-1}^T = Q R, with the signs of Q's columns and R's rows chosen so that
   diag(R) > 0; A <- Q^T, so that A A^T = I_r, and B <- B_{ft,i-1}, the last fine-tuned B, not the merged one.
2. training: the pair is trained on the task as usual.
3. end: A_merge <- A_{ft,i}; B_merge <- B_merge + lambda(i) (B_{ft,i} - B_merge), lambda(i) = 1 / sqrt(i).
   B_merge A_merge is the model after the task: it is scored, saved and exported.

| symbol | setting |
| --- | --- |
| B at a task's start | `start`: "last-fine-tuned" (the paper) or "merged" (an ablation, a public package) |
| (none) | `keep_function`: B <- B R^T instead, beyond the paper |

Q^T has the row space of the previous A; it is not its orthogonal complement. R is dropped, so the model at a
task's start, B Q^T, differs from B A_{ft,i-1} = B R^T Q^T. `keep_function` puts R^T into B: then a task
starts with the model as fine-tuned on the last task, or with `start="merged"` with the merged model, which
was scored.

lambda(i) has no lower bound; a public package bounds it at 0.1.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Context, Method
from kifuse.methods.kept import Kept, OfTask
from kifuse.methods.pairs import Pair, named_pairs
from kifuse.methods.parameters import Parameters


@final
@dataclass(kw_only=True, config=SETTINGS)
class SLAO(Method):
    """One LoRA pair per layer: A orthonormal at each start, B merged over the tasks."""

    start: Literal["last-fine-tuned", "merged"] = "last-fine-tuned"
    keep_function: bool = False

    _tuned: Kept[dict[str, Tensor] | None] = None
    _merged: OfTask[dict[str, Tensor] | None] = None

    plain_first_task = True

    def check(self, params: Parameters) -> None:
        """Refuse trained parameters that are not LoRA pairs.

        Raises:
            ValueError: A trainable tensor belongs to no pair, or a layer has fewer inputs than ranks.
        """
        pairs = dict(named_pairs(params))
        paired = {id(p) for pair in pairs.values() for p in (pair.a, pair.b)}
        others = [name for name, p in params.pairs if id(p) not in paired]
        if others:
            raise ValueError(
                f"model.adapter.kind: SLAO merges LoRA pairs and nothing else, but {others[0]} and "
                f"{len(others) - 1} more tensors are trained too. Use kind lora or rslora."
            )
        for name, pair in pairs.items():
            if pair.a.dim() != 2:
                raise ValueError(
                    f"model.adapter.target_modules: SLAO merges LoRA of linear layers, and {name} is "
                    "not one. Leave it out."
                )
            rank, inputs = pair.a.shape
            if rank > inputs:
                raise ValueError(
                    f"model.adapter.rank: {rank} rows of {name} cannot be orthonormal in {inputs} inputs. "
                    f"Use a rank of at most {inputs}."
                )

    @torch.no_grad()
    def begin_task(self, ctx: Context) -> None:
        """Keep the merged B, and start from the last fine-tuned pair, from the second task on.

        Raises:
            ValueError: See `check`.
        """
        self.check(ctx.params)
        if ctx.task.first:
            return
        tuned, pairs = self._tuned or {}, dict(named_pairs(ctx.params))
        merged = self._merged = {name: pair.b.detach().clone() for name, pair in pairs.items()}
        for name, pair in pairs.items():
            # after the first task, B_ft is the merged B
            last = tuned.get(name, merged[name])
            b = last if self.start == "last-fine-tuned" else merged[name]
            _start(pair, b, keep_function=self.keep_function)
        self._tuned = None

    @torch.no_grad()
    def end_task(self, ctx: Context) -> None:
        """Merge: B_merge + lambda(i) (B_ft - B_merge), with the newest A."""
        if self._merged is None:
            return  # lambda(1) = 1: the fine-tuned pair of the first task is the merged pair
        weight = 1.0 / math.sqrt(ctx.task.index + 1)
        pairs = dict(named_pairs(ctx.params))
        tuned = self._tuned = {name: pair.b.detach().clone() for name, pair in pairs.items()}
        for name, pair in pairs.items():
            pair.b.copy_(torch.lerp(self._merged[name], tuned[name], weight))
        ctx.event("merge", weight_of_new=weight, drift=self._drift(ctx.params))

    def _drift(self, params: Parameters) -> float:
        """How far training moved the rows of A from orthonormal: the largest |A A^T - I| over the layers."""
        grams = [_gram(pair.a) for _, pair in named_pairs(params)]
        return max(float((gram - torch.eye(len(gram))).abs().max()) for gram in grams)


def _start(pair: Pair, b: Tensor, *, keep_function: bool) -> None:
    """Set A <- Q^T, and B <- B or B R^T, where A^T = Q R with diag(R) > 0."""
    wide = torch.promote_types(pair.a.dtype, torch.float32)
    q, r = torch.linalg.qr(pair.a.detach().to(wide).mT)
    # a dead rank has a 0 on the diagonal, and keeps its sign
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(wide)
    pair.a.copy_((q * signs).mT)
    pair.b.copy_(b.to(wide) @ (signs.unsqueeze(1) * r).mT if keep_function else b)


def _gram(a: Tensor) -> Tensor:
    """Compute A A^T, `(r, r)`, on the CPU."""
    return (a.detach().float() @ a.detach().float().mT).cpu()

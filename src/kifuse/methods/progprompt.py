"""Progressive Prompts (arXiv 2301.12314): each task learns a prompt of its own before those of earlier tasks.

    task t reads [P_t; P_(t-1); ...; P_1; E(x)],      L = cross-entropy; only P_t trains

P_i are L vectors each. When a test example's task is known, it is read as its task was learned, with the
prompts up to its own: then nothing can be forgotten. Otherwise all prompts stand before every input, which is
how KIF's Table I evaluates it.

| symbol | setting |
| --- | --- |
| L | `length` |
| bottleneck of the residual network, P_t + LN(W_2 ReLU(W_1 P_t)), while t is learned; 0: none | `residual` |
| whether a test example's task is told | `task_id` |

Prompts begin as embeddings of random tokens. With a residual network, what it makes of P_t is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kifuse.adapters.by_task import ByTask
from kifuse.adapters.prompts import OwnPrompts, TaskPrompts
from kifuse.methods.base import SETTINGS, DataClass, Method


class ResidualPrompts(OwnPrompts):
    """Prompts of which the present task's goes through a network of its own while it is learned.

    Args:
        start: What the first begins as, `(L, d)`.
        bottleneck: Width of the network; 0 for none.
    """

    passing = ("network.",)

    def __init__(self, start: Tensor, bottleneck: int) -> None:
        super().__init__(start)
        self.network = _network(start.shape[-1], bottleneck) if bottleneck else None
        self.learning = True
        """Whether the network is in use; at a task's end it becomes part of the prompt."""

    def present(self) -> Tensor:
        """The present task's prompt as it is read, `(L, d)`."""
        if self.network is None or not self.learning:
            return self.prompt
        return self.prompt + self.network(self.prompt)

    @torch.no_grad()
    def settle(self) -> None:
        """Keep what the network makes of the prompt, in its place."""
        self.prompt.copy_(self.present())
        self.learning = False


def _network(width: int, bottleneck: int) -> nn.Sequential:
    """LN(W_2 ReLU(W_1 P))."""
    inner, outer = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
    return nn.Sequential(inner, nn.ReLU(), outer, nn.LayerNorm(width))


class ProgressivePrompts(TaskPrompts):
    """The prompts of all tasks before the input, the newest first."""

    def make(self, embeddings: Tensor, seed: int) -> ResidualPrompts:
        """The first task's prompt."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ResidualPrompts(super().make(embeddings, seed).prompt.detach(), self.method.residual)

    def vectors(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        """[P_t; ...; P_1] of the task that was told, or of the last one, for every row."""
        prompts = self.model.soft_prompts
        stack = torch.cat([prompts.past_prompt, prompts.present()[None]])
        if self.told is not None:
            stack = stack[: self.told + 1]
        return stack.flip(0).flatten(0, 1).expand(len(ids), -1, -1)

    def renew(self, part: ByTask, draw: torch.Generator) -> None:
        """Begin the next prompt, and its network."""
        super().renew(part, draw)
        prompts = self.model.soft_prompts
        prompts.learning = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.initial_seed())
            for layer in prompts.network or ():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()

    def end_task(self) -> None:
        """Keep the prompt as the network made it."""
        self.model.soft_prompts.settle()

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Forget all prompts."""
        super().restart(values)
        self.model.soft_prompts.learning = True

    def load(self, folder: Path) -> None:
        """Put saved prompts back."""
        super().load(folder)
        self.model.soft_prompts.learning = False


@final
@dataclass(kw_only=True, config=SETTINGS)
class ProgPrompt(Method):
    """A prompt for each task, before those of the earlier tasks."""

    length: Annotated[int, Field(ge=1)] = 10
    residual: Annotated[int, Field(ge=0)] = 0
    task_id: bool = True

    adapter = ProgressivePrompts
    plain_first_task = False

    @property
    def data_class(self) -> DataClass:
        """The task id, where it is told."""
        return "task id given" if self.task_id else "replay-free"

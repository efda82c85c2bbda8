"""Progressive Prompts (arXiv 2301.12314): each task learns its own prompt before those of earlier tasks.

    task t reads [P_t; P_(t-1); ...; P_1; E(x)],      L = cross-entropy; only P_t trains

Each P_i has L vectors. If a test example's task is known, the example is read as its task was learned, with
the prompts up to this task: then nothing can be forgotten. Otherwise all prompts stand before every input, as
in the evaluation of KIF's Table I.

| symbol | setting |
| --- | --- |
| L | `length` |
| bottleneck of the residual network, P_t + LN(W_2 ReLU(W_1 P_t)), while t is learned; 0: none | `residual` |
| whether a test example's task is told | `task_id` |

Prompts start as embeddings of random tokens. With a residual network, the network's output for P_t is kept.
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
    """Prompts of all tasks; the current task's prompt passes through a network while it is learned.

    Args:
        start: Starting values of the first prompt, `(L, d)`.
        bottleneck: Width of the network; 0 for none.
    """

    passing = ("network.",)

    def __init__(self, start: Tensor, bottleneck: int) -> None:
        super().__init__(start)
        self.network = _network(start.shape[-1], bottleneck) if bottleneck else None
        self.learning = True
        """Whether the network is in use; at the end of a task its output becomes the prompt."""

    def present(self) -> Tensor:
        """The current task's prompt as the model reads it, `(L, d)`."""
        if self.network is None or not self.learning:
            return self.prompt
        return self.prompt + self.network(self.prompt)

    @torch.no_grad()
    def settle(self) -> None:
        """Replace the prompt by the network's output for it."""
        self.prompt.copy_(self.present())
        self.learning = False


def _network(width: int, bottleneck: int) -> nn.Sequential:
    """Make the network LN(W_2 ReLU(W_1 P))."""
    inner, outer = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
    return nn.Sequential(inner, nn.ReLU(), outer, nn.LayerNorm(width))


class ProgressivePrompts(TaskPrompts):
    """The prompts of all tasks before the input, the newest first."""

    def make(self, embeddings: Tensor, seed: int) -> ResidualPrompts:
        """Make the first task's prompt."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ResidualPrompts(super().make(embeddings, seed).prompt.detach(), self.method.residual)

    def vectors(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        """Return [P_t; ...; P_1] for every row, with t the told task or the last one."""
        prompts = self.model.soft_prompts
        stack = torch.cat([prompts.past_prompt, prompts.present()[None]])
        if self.told is not None:
            stack = stack[: self.told + 1]
        return stack.flip(0).flatten(0, 1).expand(len(ids), -1, -1)

    def renew(self, part: ByTask, draw: torch.Generator) -> None:
        """Start the next prompt, and its network."""
        super().renew(part, draw)
        prompts = self.model.soft_prompts
        prompts.learning = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.initial_seed())
            for layer in prompts.network or ():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()

    def end_task(self) -> None:
        """Replace the prompt by the network's output for it."""
        self.model.soft_prompts.settle()

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Remove all prompts."""
        super().restart(values)
        self.model.soft_prompts.learning = True

    def load(self, folder: Path) -> None:
        """Load saved prompts."""
        super().load(folder)
        self.model.soft_prompts.learning = False


@final
@dataclass(kw_only=True, config=SETTINGS)
class ProgPrompt(Method):
    """A prompt for each task, placed before those of the earlier tasks."""

    length: Annotated[int, Field(ge=1)] = 10
    residual: Annotated[int, Field(ge=0)] = 0
    task_id: bool = True

    adapter = ProgressivePrompts
    plain_first_task = False

    @property
    def data_class(self) -> DataClass:
        """Depends on whether the task id is told."""
        return "task id given" if self.task_id else "replay-free"

"""Your own method in one short file: in every step it pulls the adapter back to where it was before the task.

    python examples/own_method.py

A method is made of hooks, and knows neither the Trainer nor the data. It works wherever the methods of kifuse
work: here by its name in a run beside sequential training, or as `Anchor().callback(...)` in your script.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

import kifuse
from kifuse.methods.base import SETTINGS


@dataclass(kw_only=True, config=SETTINGS)
class Anchor(kifuse.Method):
    """Adds strength * (w - w before the task) to each gradient: an L2 penalty around the last model."""

    strength: Annotated[float, Field(ge=0)] = 1.0
    _anchor: kifuse.OfTask[list[Tensor] | None] = None  # saved in the middle of a task, forgotten at its end

    def begin_task(self, ctx: kifuse.Context) -> None:
        """Remember the weights before the task. Before the first task there is nothing to keep."""
        if not ctx.task.first:
            self._anchor = ctx.params.clone()

    def on_gradients(self, ctx: kifuse.Context) -> None:
        """Change the gradients, which are complete now, before the optimizer moves the weights."""
        for p, start in zip(ctx.params.tensors, self._anchor or (), strict=bool(self._anchor)):
            if p.grad is not None:
                p.grad.add_(p.detach() - start, alpha=self.strength)


def main() -> None:
    """Run the method and sequential training on three jobs of a support desk, and compare them."""
    from rich.console import Console

    from kifuse.reporting.terminal_tables import comparison_table

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="a bundled model, hub id or folder")
    parser.add_argument("--out", type=Path, default=Path("runs/own-method"))
    parser.add_argument("--examples", type=int, default=64, help="training examples of each task")
    options = parser.parse_args()

    kifuse.register("anchor", Anchor)
    jobs = ["01-queue", "02-urgency", "04-next-step"]
    records = []
    for method in ({"name": "sequential"}, {"name": "anchor", "strength": 0.1}):
        config = {
            "model": {"name": options.model},
            "data": {
                "benchmark": "support-desk",
                "order": jobs,
                "train_examples": options.examples,
                "test_examples": options.examples,
            },
            "training": {"learning_rate": 1e-3, "epochs": 2},
            "method": method,
            "output": options.out / method["name"],
        }
        records.append(kifuse.run(kifuse.RunConfig.model_validate(config)))
    Console().print(comparison_table(records))


if __name__ == "__main__":
    main()

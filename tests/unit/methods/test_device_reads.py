"""What a step reads from the device: with each read the host waits for all that is queued there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kifuse.driving.finite_guard import Guard
from kifuse.registry import build_method
from tests.unit.methods.by_hand import ByHand, batches, values

READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")
NAMES = {getattr(Tensor, name): name for name in READS} | {torch.equal: "equal", torch.nonzero: "nonzero"}
HOOKS = ("on_gradients", "on_update", "on_step")


class Reads(TorchFunctionMode):
    """Notes each read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args[1:], *(kwargs or {}).values())
        if func in NAMES:
            self.found.append(NAMES[func])
        elif func is Tensor.to and any(isinstance(value, str) and value == "cpu" for value in given):
            self.found.append("to")
        return func(*args, **(kwargs or {}))


class Watched(ByHand):
    """Notes what a method's hooks read in each step, where no log line is due."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.reads: list[list[str]] = [[] for _ in self.current]
        real = self.method

        def watched(hook: Callable[..., None], *given: Any) -> None:
            with Reads() as mode:
                hook(*given)
            self.reads[self.step - (hook.__name__ == "on_step")] += mode.found

        class Seen:
            def __getattr__(self, name: str) -> Any:
                found = getattr(real, name)
                return (lambda *given: watched(found, *given)) if name in HOOKS else found

        self.method: Any = Seen()

    @property
    def logging(self) -> bool:
        return False

    def measure(self, **series: Tensor) -> None:
        """Nobody looks at the pictures."""


def learn_two(name: str, steps: int, **settings: Any) -> list[list[str]]:
    """What each step of the first and then of the second task reads."""
    method = build_method(name, settings)
    found = []
    for index in (0, 1):
        task = Watched(method, values(), batches(steps, seed=10 + index), batches(2, seed=3), index=index)
        task.train()
        found += task.reads
    return found


def test_what_is_read_is_seen():
    number = torch.ones(())
    with Reads() as mode:
        [number.item(), number.tolist(), float(number), bool(number), number.to("cpu"), number + 1]
    assert mode.found == ["item", "tolist", "__float__", "__bool__", "to"]


KIFS = ["kif", "kiflora", "kif-m", "kiflora-m", "tasl"]
OTHERS = ["sequential", "replay", "ema", "weight-ensemble", "slao", "inclora", "o-lora", "n-lora", "ella"]


@pytest.mark.parametrize("name", [*KIFS, *OTHERS])
def test_a_step_reads_nothing(name: str):
    assert learn_two(name, 4) == [[]] * 8


def test_recurrent_kif_reads_where_it_fuses():
    found = learn_two("recurrent-kif", 8, inner_steps=4)
    assert [step for step, reads in enumerate(found) if reads] == [8 + 3, 8 + 7]


@pytest.mark.parametrize("name", ["forever", "aimmerging", "vr-mcl"])
def test_methods_that_look_at_a_number_read_it_alone(name: str):
    assert [len(reads) for reads in learn_two(name, 4)] == [0] * 4 + [1] * 4


def test_the_guard_reads_once():
    task = ByHand(build_method("sequential", {}), values(), batches(1), [])
    context: Any = SimpleNamespace(
        trainer=SimpleNamespace(accelerator=SimpleNamespace(num_processes=1)), params=task.params
    )
    with Reads() as mode:
        assert Guard().healthy(context, "task", 1, [torch.ones(())], torch.ones(8))
    assert mode.found == ["tolist"]

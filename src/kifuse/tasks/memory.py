"""The memory buffer: a few examples are kept of each learned task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, get_args

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.sampling import visiting_order
from kifuse.tasks.task import Example, Task, check_different, check_task_name

Selection = Literal["balanced", "random"]
_VERSION = 1


class MemoryBuffer:
    """Examples of earlier tasks, drawn once when a task is added and never changed afterwards.

    Args:
        share: Share of a task's training examples to keep, above 0 and at most 1; rounded down, at least one
            example.
        per_task: Number to keep of each task instead of a share.
        selection: ``"balanced"`` over the labels if a task has labels, or ``"random"``.
        seed: Seed of the draws; a draw depends only on the seed, the task's name and the task's data.

    Raises:
        DataError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        share: float = 0.02,
        per_task: int | None = None,
        selection: Selection = "balanced",
        seed: int = 0,
    ) -> None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise DataError(f"memory.share is {share!r}, expected a number above 0 and at most 1.")
        if per_task is not None and (not _is_whole(per_task) or per_task < 1):
            raise DataError(f"memory.per_task is {per_task!r}, expected a whole number of at least 1.")
        if not _is_whole(seed):
            raise DataError(f"The seed of the memory buffer is {seed!r}, expected a whole number.")
        if selection not in get_args(Selection):
            raise DataError(
                f"memory.selection is {selection!r}, expected one of {', '.join(get_args(Selection))}."
                f"{did_you_mean(str(selection), get_args(Selection))}"
            )
        self.share = share
        self.per_task = per_task
        self.selection: Selection = selection
        self.seed = seed
        self._examples: dict[str, tuple[Example, ...]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._examples.values()))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks held, in the order in which they were added."""
        return list(self._examples)

    def quota(self, available: int) -> int:
        """Return how many of ``available`` training examples are kept."""
        # Decimal of the number as written: 0.29 of 100 is 29, but floats give 28.99….
        share = Decimal(str(float(self.share)))
        wanted = self.per_task if self.per_task is not None else int(share * available)
        return max(1, min(wanted, available))

    def draw(self, task: Task) -> tuple[Example, ...]:
        """Choose the examples of a task that are kept once it is learned; every call gives the same ones.

        Args:
            task: The task.

        Raises:
            DataError: The task has no training examples.
        """
        if not task.train:
            raise DataError(f"Task '{task.name}' has no training examples to keep in the memory buffer.")
        labels = task.labels if self.selection == "balanced" else None
        order = visiting_order(task.train, labels, (self.seed, task.name, task.split_hash("train")))
        return tuple(task.train[index] for index in sorted(order[: self.quota(len(task.train))]))

    def add(self, task: Task, instead: Sequence[Example] | None = None) -> None:
        """Keep some training examples of a task.

        Args:
            task: The task just learned.
            instead: Examples to keep instead of drawn ones; if empty, nothing is kept of the task.

        Raises:
            DataError: If the task is already in the buffer, or has no training examples.
        """
        if task.name in self._examples:
            raise DataError(f"Task '{task.name}' is in the memory buffer already; add each task once.")
        check_different([*self._examples, task.name], "The memory buffer")
        found = self.draw(task) if instead is None else tuple(instead)
        if found:
            self._examples[task.name] = found

    def examples(self, task: str | None = None) -> list[Example]:
        """List the examples held.

        Args:
            task: Name of one task, or None for all of them in the order they were added.

        Returns:
            The examples.

        Raises:
            DataError: If the task is not held.
        """
        if task is None:
            return [example for held in self._examples.values() for example in held]
        if task not in self._examples:
            held = ", ".join(self._examples) or "none"
            raise DataError(
                f"Task '{task}' is not in the memory buffer, which holds: {held}."
                f"{did_you_mean(task, self._examples)}"
            )
        return list(self._examples[task])

    def state(self) -> dict[str, Any]:
        """Describe the buffer and its contents as a JSON value."""
        return {
            "version": _VERSION,
            "share": self.share,
            "per_task": self.per_task,
            "selection": self.selection,
            "seed": self.seed,
            "tasks": [
                {"name": name, "examples": [example.state() for example in held]}
                for name, held in self._examples.items()
            ],
        }

    @classmethod
    def from_state(cls, state: object, where: str | os.PathLike[str] = "memory buffer") -> MemoryBuffer:
        """Rebuild a buffer from :meth:`state`.

        Args:
            state: The value that :meth:`state` returned, possibly from a JSON file.
            where: The file that the state was read from, for messages.

        Returns:
            A buffer equal to the one described.

        Raises:
            DataError: If the state is of another version, incomplete, or holds a value that no buffer has;
                the message names ``where``, task and example.
        """
        if not isinstance(state, Mapping):
            raise DataError(f"{where}: the state of the memory buffer is not a JSON object; it is damaged.")
        version = state.get("version")
        if not _is_whole(version) or version != _VERSION:
            raise DataError(
                f"{where}: the state of the memory buffer has version {version!r}, expected {_VERSION}."
            )
        try:
            buffer = cls(
                share=state["share"],
                per_task=state["per_task"],
                selection=state["selection"],
                seed=state["seed"],
            )
            for entry in state["tasks"]:
                buffer._take(entry)
            check_different([entry["name"] for entry in state["tasks"]], "it")
        except KeyError as error:
            raise DataError(
                f"{where}: the state of the memory buffer is damaged: {error} is missing."
            ) from error
        except (TypeError, DataError) as error:
            reason = str(error).rstrip(".")
            raise DataError(f"{where}: the state of the memory buffer is damaged: {reason}.") from error
        return buffer

    def _take(self, entry: Mapping[str, Any]) -> None:
        """Take over the examples of one task from a state."""
        name = entry["name"]
        check_task_name(name)
        if not isinstance(entry["examples"], list) or not entry["examples"]:
            raise DataError(f"task '{name}' holds no list of examples")
        if self.per_task is not None and len(entry["examples"]) > self.per_task:
            raise DataError(f"task '{name}' holds {len(entry['examples'])} examples, more than per_task")
        self._examples[name] = tuple(
            _example_of(item, f"task '{name}', example {number}")
            for number, item in enumerate(entry["examples"], 1)
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _example_of(item: Mapping[str, Any], where: str) -> Example:
    references = item["references"]
    if not isinstance(references, list) or not references:
        raise DataError(f"{where} holds the references {references!r}, expected a list of at least one text")
    known = item["id"]
    for text in (item["head"], item["body"], item["tail"], *references, "" if known is None else known):
        if not _is_text(text):
            raise DataError(f"{where} holds {text!r}, expected text")
    example = Example.from_state(item)
    if not example.input.strip() and not example.target.strip():
        raise DataError(f"{where} has neither input nor output")
    return example


def _is_text(value: object) -> bool:
    # The codes in this range are halves of surrogate pairs, which no file can hold.
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))

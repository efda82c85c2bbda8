"""A Trainer's batch: its collated parts, and whether their rows are examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from kifuse.errors import RunError

Inputs = Mapping[str, Any]
"""A collated batch, as a Trainer's data loader gives it."""

JOINED = (
    "the batches join their examples in one row. Turn padding_free off, use a collator that pads, such as "
    "DataCollatorForSeq2Seq, or set per_device_train_batch_size: 1 and more gradient_accumulation_steps."
)


@dataclass(frozen=True)
class TrainerBatch:
    """Examples of this process in collated parts, each for one forward pass.

    Attributes:
        parts: The parts.
        processes: Number of processes, to split a batch over all of them.
        passes: Work of one pass over it; a whole batch is 1, whatever its size.
    """

    parts: tuple[Inputs, ...]
    processes: int = 1
    passes: Fraction = Fraction(1)

    @property
    def only_part(self) -> Inputs:
        """The inputs of a batch that is one forward pass.

        Raises:
            RunError: The batch is several forward passes.
        """
        if len(self.parts) != 1:
            raise RunError(f"a batch of one forward pass is needed here, but this one has {len(self.parts)}.")
        return self.parts[0]

    def __add__(self, other: Any) -> TrainerBatch:
        return TrainerBatch((*self.parts, *other.parts), self.processes, self.passes + other.passes)

    def split(self, size: int) -> list[TrainerBatch]:
        """See `kifuse.methods.context.Batch.split`."""
        most = max(1, size // self.processes)
        found: list[list[Inputs]] = []
        room = 0
        for part in self.parts:
            start, rows = 0, rows_of(part)
            while start < rows:
                if not room:
                    found.append([])
                    room = most
                end = min(rows, start + room)
                found[-1].append(_cut(part, start, end))
                room -= end - start
                start = end
        share = self.passes / max(1, len(found))
        return [TrainerBatch(tuple(parts), self.processes, share) for parts in found]


def rows_of(inputs: Inputs) -> int:
    """Count the examples of a part."""
    of = inputs.get("labels", inputs.get("input_ids"))
    if isinstance(of, Tensor) and of.dim():
        return len(of)
    return next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 0)


def joins_examples(inputs: Inputs) -> bool:
    """Whether a row holds several texts, as far as a batch shows it: then positions begin again."""
    if not isinstance(inputs, Mapping) or inputs.get("attention_mask") is not None:
        return False
    places, lengths = inputs.get("position_ids"), inputs.get("cu_seq_lens_q")
    if isinstance(places, Tensor):
        return bool(((places == 0).sum(dim=-1) > 1).any())
    return isinstance(lengths, Tensor) and lengths.numel() > 2


def refuse_joined(inputs: Inputs, what: str) -> None:
    """Refuse a batch that joins its examples in one row.

    Args:
        inputs: The batch.
        what: What is taken from its rows, for the message.

    Raises:
        RunError: It joins them.
    """
    if joins_examples(inputs):
        raise RunError(f"it needs {what}, but {JOINED}")


def _cut(inputs: Inputs, start: int, end: int) -> Inputs:
    """Take some examples of a part; a value that has no row for each example is kept whole."""
    rows = rows_of(inputs)
    return {
        key: value[start:end] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value
        for key, value in inputs.items()
    }

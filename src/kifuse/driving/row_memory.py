"""The memory of a stand-alone callback: rows of a data set, as the Trainer's own collator takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kifuse.errors import RunError
from kifuse.io.storage import sha256_text
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.sampling import visiting_order

FORMAT = 1
Row = dict[str, Any]

_TENSOR, _ARRAY, _VALUES = "__tensor__", "__array__", "values"


class RowMemory:
    """Rows kept of each task learned, in the form in which a file holds them.

    Args:
        share: Part of a task's rows to keep, above 0 and at most 1; rounded down, at least one.
        per_task: Number to keep of each task instead of a share.

    Raises:
        DataError: A setting is out of range.
    """

    def __init__(self, *, share: float = 0.02, per_task: int | None = None) -> None:
        self._quota = MemoryBuffer(share=share, per_task=per_task).quota
        self._tasks: dict[str, list[Row]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))

    def rows(self) -> list[Row]:
        """All rows as a collator takes them, in the order in which their tasks were learned."""
        return [live(row) for kept in self._tasks.values() for row in kept]

    def tasks(self) -> list[str]:
        """The task of each of `rows`."""
        return [name for name, kept in self._tasks.items() for _ in kept]

    def draw(self, task: str, dataset: Any, seed: int) -> list[Row]:
        """Choose the rows of a task that are to be kept.

        Args:
            task: Name of the task; the draw depends on it, on the seed and on the number of rows.
            dataset: Rows by number.
            seed: Seed of the draw.

        Returns:
            The rows, for `keep`.

        Raises:
            RunError: A row holds what cannot be kept in a text file.
        """
        order = visiting_order(range(len(dataset)), None, (seed, task))  # type: ignore[arg-type]
        chosen = sorted(order[: self._quota(len(dataset))])
        return [plain(dataset[index], f"row {index}") for index in chosen]

    def keep(self, task: str, rows: list[Row]) -> None:
        """Keep the rows that were drawn of a task."""
        self._tasks[task] = rows

    def text(self) -> str:
        """The memory as JSON Lines: a heading, then one row a line."""
        counts = {name: len(kept) for name, kept in self._tasks.items()}
        lines: list[Any] = [{"format": FORMAT, "tasks": counts}]
        lines += [row for kept in self._tasks.values() for row in kept]
        # in ASCII, so that no character of a text ends a line or cannot be written as UTF-8
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    def read(self, text: str, file: Path) -> None:
        """Restore what `text` gave.

        Args:
            text: The content of a file.
            file: Its name, for messages.

        Raises:
            RunError: The content is not that of such a file; the message names the line.
        """
        lines = text.splitlines()
        heading = _line(lines[0] if lines else "", file, 1)
        if heading.get("format") != FORMAT or not isinstance(heading.get("tasks"), dict):
            raise RunError(f"{file}:1: not a memory of format {FORMAT}; it is damaged or of another version.")
        rows = [_line(line, file, number) for number, line in enumerate(lines[1:], start=2)]
        if len(rows) != sum(heading["tasks"].values()):
            raise RunError(f"{file}: holds {len(rows)} rows, expected {sum(heading['tasks'].values())}.")
        self._tasks, start = {}, 0
        for name, count in heading["tasks"].items():
            self._tasks[name] = rows[start : start + count]
            start += count


def _line(text: str, file: Path, number: int) -> Row:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RunError(f"{file}:{number}: not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RunError(f"{file}:{number}: found {type(found).__name__}, expected a row of named values.")
    return found


def fingerprint_of(rows: Sequence[Row]) -> str:
    """A hash of rows and their order; only their number if a row cannot be written as text."""
    try:
        return sha256_text("\n".join(json.dumps(plain(row, "a row"), sort_keys=True) for row in rows))
    except RunError:
        return f"{len(rows)} rows"


LOOKED_AT = 32
"""How many rows of a data set go into its hash."""


def known_by(dataset: Any) -> str | None:
    """A hash of a data set's length and of some of its rows.

    Returns:
        The hash; None for a stream, for rows that cannot be written as text, and for rows that are different
        each time, as with random transforms.
    """
    try:
        count = len(dataset)
        places = sorted(
            {place * (count - 1) // (LOOKED_AT - 1) for place in range(LOOKED_AT)} if count else ()
        )
        first, again = (
            json.dumps([plain(dataset[place], "a row") for place in places], sort_keys=True) for _ in range(2)
        )
    except (TypeError, RunError):
        return None
    return sha256_text(f"{count} {first}") if first == again else None


def plain(row: Any, where: str) -> Row:
    """A row as JSON, from which `live` makes the same row again.

    Args:
        row: A mapping of names to numbers, texts, lists, tensors or arrays.
        where: Which row it is, for messages.

    Raises:
        RunError: The row holds something else, such as a picture.
    """
    if not isinstance(row, Mapping):
        raise RunError(
            f"{where} of the training data is a {type(row).__name__}, expected a mapping of column names to "
            "values. A method with a memory keeps only such rows."
        )
    return {str(key): _plain(value, f"{where}, column {str(key)!r}") for key, value in row.items()}


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return {_TENSOR: kind, _VALUES: _plain(value.tolist(), where)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {_ARRAY: value.dtype.str, _VALUES: _plain(value.tolist(), where)}
    if isinstance(value, np.generic):
        return _plain(value.item(), where)
    if isinstance(value, (list, tuple)):
        return [_plain(each, where) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each, where) for key, each in value.items()}
    raise RunError(
        f"{where} of the training data holds a {type(value).__name__}, which the memory cannot keep. It "
        "keeps finite numbers, texts, lists and tensors. Leave the column out, or give memory= yourself."
    )


def live(row: Row) -> Row:
    """Turn what `plain` made back into the row."""
    return {key: _live(value) for key, value in row.items()}


def _live(value: Any) -> Any:
    if isinstance(value, list):
        return [_live(each) for each in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return torch.tensor(value[_VALUES], dtype=getattr(torch, value[_TENSOR]))
    if _ARRAY in value:
        return np.array(value[_VALUES], dtype=value[_ARRAY])
    return {key: _live(each) for key, each in value.items()}


def given_rows(memory: Any, trainer: Any, sample: Any) -> list[Row]:
    """The rows of a memory that a user gave, with the columns that the Trainer's own rows have.

    Args:
        memory: A `MemoryBuffer`; or rows as in the Trainer's processed `train_dataset`; or, for `SFTTrainer`,
            rows as they were before it processed them.
        trainer: The Trainer.
        sample: One row of its training data, or None if that is a stream.

    Raises:
        RunError: The rows lack a column, or TRL is too old to process them.
    """
    if isinstance(memory, MemoryBuffer):
        rows = _encoded(memory, trainer)
    else:
        rows = [memory[index] for index in range(len(memory))]
    if not isinstance(sample, Mapping) or not rows:
        return rows
    if "input_ids" in sample and "input_ids" not in rows[0]:
        rows = _prepared(rows, trainer)
    optional = {"attention_mask", "seq_lengths"} if isinstance(memory, MemoryBuffer) else set()
    return with_columns_of(sample, rows, optional)


def with_columns_of(sample: Any, rows: list[Row], optional: Set[str] = frozenset()) -> list[Row]:
    """Rows of earlier tasks with the columns of a task's own rows, and no others.

    Args:
        sample: One of the task's own rows.
        rows: Rows of earlier tasks.
        optional: Columns that they may lack.

    Raises:
        RunError: They lack another column.
    """
    if not isinstance(sample, Mapping):
        return rows
    for number, row in enumerate(rows):
        for column in sample:
            if column not in row and column not in optional:
                raise RunError(
                    f"memory: row {number} has no column {column!r}, which the training rows have "
                    f"({', '.join(map(str, sample))}); rows of earlier tasks must have the columns of the "
                    "Trainer's processed train_dataset."
                )
    return [{column: row[column] for column in sample if column in row} for row in rows]


def _prepared(rows: list[Row], trainer: Any) -> list[Row]:
    """Rows as `SFTTrainer` makes them out of texts and chats."""
    if not any(cls.__name__ == "SFTTrainer" for cls in type(trainer).__mro__):
        raise RunError(
            f"memory: the rows hold {', '.join(map(str, rows[0]))}, but no 'input_ids'; give rows of the "
            "Trainer's processed train_dataset."
        )
    if not hasattr(trainer, "_formatting_func"):
        raise RunError(
            f"memory: the rows hold {', '.join(map(str, rows[0]))}, but no 'input_ids', and the SFTTrainer "
            f"of TRL {version('trl')} does not say how it processed the training data. TRL 1.8 and later "
            "does: pip install --upgrade trl. Or give rows of the Trainer's processed train_dataset."
        )
    from datasets import Dataset

    args = trainer.args
    made = trainer._prepare_dataset(
        Dataset.from_list(rows),
        trainer.processing_class,
        args,
        args.packing,
        trainer._formatting_func,
        "memory",
    )
    return [made[index] for index in range(len(made))]


def _encoded(memory: MemoryBuffer, trainer: Any) -> list[Row]:
    """Examples as rows of token ids; only the target counts for the loss."""
    examples = memory.examples()
    if not examples:
        return []
    tokenizer = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    if tokenizer is None:
        raise RunError(
            "memory: a MemoryBuffer holds texts, and the Trainer has no tokenizer for them. Make it with "
            "Trainer(processing_class=tokenizer)."
        )
    encoder_decoder = bool(getattr(trainer.model.config, "is_encoder_decoder", False))
    encoder = Encoder(tokenizer, encoder_decoder=encoder_decoder)
    rows = []
    for encoded in encoder.encode_many(examples):
        prompt, target = list(encoded.input_ids), list(encoded.target_ids)
        ids = prompt if encoder_decoder else prompt + target
        labels = target if encoder_decoder else [-100] * len(prompt) + target
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows


def first_row(dataset: Any) -> Any:
    """The first row of a data set; None for a stream, or if there is no row."""
    try:
        return dataset[0] if len(dataset) else None  # type: ignore[arg-type, index]
    except TypeError:
        return None

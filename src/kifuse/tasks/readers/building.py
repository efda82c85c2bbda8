"""Turns rows of any format into a task: instruction, options, labels, metric, and a list of unread fields."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import PurePath
from typing import Any

from kifuse.errors import DataError, counted, did_you_mean
from kifuse.tasks.on_disk import joined
from kifuse.tasks.readers.chat import KNOWN_KEYS, conversation, listed, unknown_keys
from kifuse.tasks.readers.formats import COMMON, KNOWN_FIELDS, Asked, Format, format_of
from kifuse.tasks.readers.names import listed as enumerated
from kifuse.tasks.readers.rows import Row, check_outputs, checked_labels
from kifuse.tasks.readers.settings import Settings
from kifuse.tasks.readers.tables import Table
from kifuse.tasks.task import SPLITS, Example, Task, check_task_name

CUE = "\nAnswer:"
_MOST_LABELS = 200
_HARMLESS = frozenset(
    {"idx", "index", "__index_level_0__", "source", "data_source", "dataset", "dataset_name", "metadata"}
    | {"meta", "extra_info", "url", "uuid", "uid", "guid", "hash", "split", "subset", "category", "topic"}
    | {"domain", "lang", "language", "license", "timestamp", "created", "date", "title", "type", "tags"}
    | {"conversation_id", "conversation_hash", "prompt_id", "question_id", "turn", "model", "score", "level"}
    | {"answer_start", "num_tokens", "n_tokens", "token_count", "length", "difficulty", "author", "version"}
)
"""Fields that say where a row comes from; one note names them all together."""


@dataclass
class _Seen:
    """What was found in the rows of a task."""

    formats: Counter[str] = field(default_factory=Counter)
    option_sets: dict[tuple[str, ...] | None, None] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    continued: int = 0
    asked: Row | None = None
    text: Row | None = None


def build(
    name: str, tables: Mapping[str, Table], settings: Settings, passed_over: Sequence[str] = ()
) -> Task:
    """Make a task from rows.

    Args:
        name: The task's name.
        tables: Rows of ``train``, ``dev`` and ``test``, or of some of these splits.
        settings: Settings for all rows.
        passed_over: Notes about what was not read besides the rows, one sentence each.

    Returns:
        The task.

    Raises:
        DataError: A row is wrong; the message names file and line. Or the task has neither train nor test
            examples.
    """
    seen = _Seen()
    _check_columns(name, tables, settings)
    tables, without = _labelled(tables)
    settings = _with_names(settings, tables)
    found = {
        split: Example.held(_example(_renamed(row, settings, seen), settings, seen) for row in table.rows)
        for split, table in tables.items()
    }
    if not found.get("train") and not found.get("test"):
        where = next((row.where for table in tables.values() for row in table.rows), name)
        raise DataError(f"{where}: task '{name}' has only dev examples, expected a train or a test file.")
    labels, why = _labels(settings, seen, found)
    if labels is not None:  # the labels replace the options of all rows
        found = {
            split: Example.held(replace(e, options=()) if e.options else e for e in examples)
            if any(e.options for e in examples)
            else examples
            for split, examples in found.items()
        }
    metric, metric_why = _metric(name, settings, seen, why)
    notes = [note for table in tables.values() for note in table.passed_over]
    said = [*dict.fromkeys(notes), *without, *passed_over]
    files = dict.fromkeys(file for table in tables.values() for file in table.files)
    formats = " and ".join(seen.formats)
    return Task(
        name=name,
        train=found.get("train", ()),
        dev=found.get("dev", ()),
        test=found.get("test", ()),
        labels=labels,
        metric=metric,
        source=f"{next(iter(tables.values())).kind}/{name}",
        format=f"{formats} in {enumerated(list(files))}" if files else formats,
        metric_why=metric_why,
        passed_over=(*said, *_unread(seen)),
    )


def grouped(
    name: str, tables: Mapping[str, Table], settings: Settings, passed_over: Sequence[str] = ()
) -> dict[str, Callable[[], Task]]:
    """Divide rows into tasks, if they name their tasks in a field ``task``.

    Args:
        name: The task's name if no row names one.
        tables: Rows by split.
        settings: Settings for all rows.
        passed_over: Notes about what was not read besides the rows.

    Returns:
        For each name, a function that makes the task.

    Raises:
        DataError: Only some rows name their task, or a name cannot be a file's name.
    """
    column = settings.columns.get("task", "task")
    every = joined(*(table.rows for table in tables.values()))
    unnamed = next((row for row in every if row.values.get(column) is None), None)
    if not any(row.values.get(column) is not None for row in every):
        return {name: partial(build, name, tables, settings, passed_over)}
    if unnamed is not None:
        raise DataError(
            f"{unnamed.where}: the field '{column}' is missing, expected a name as in the other rows."
        )
    groups: dict[str, dict[str, array[int]]] = defaultdict(lambda: defaultdict(lambda: array("q")))
    for split, table in tables.items():
        for place, row in enumerate(table.rows):
            task = row.get_text(column)
            if task not in groups:
                try:
                    check_task_name(task)
                except DataError as error:
                    raise DataError(f"{row.where}: '{column}': {error}") from error
            groups[task][split].append(place)
    return {
        task: partial(
            build,
            task,
            {split: _of_task(tables[split], places) for split, places in members.items()},
            settings,
            passed_over,
        )
        for task, members in groups.items()
    }


def _of_task(table: Table, places: array[int]) -> Table:
    return replace(table, rows=Row.held(table.rows[place] for place in places))


def check_one_task(name: str, tables: Mapping[str, Table], settings: Settings) -> None:
    """Refuse rows that name a different task than their folder or file does."""
    column = settings.columns.get("task", "task")
    for table in tables.values():
        for row in table.rows:
            if row.values.get(column) is not None and row.get_text(column) != name:
                raise DataError(
                    f"{row.where}: '{column}' is '{row.get_text(column)}', expected '{name}', the name of "
                    "the file or folder; to read several tasks from one file, give that file as the path."
                )


def _labelled(tables: Mapping[str, Table]) -> tuple[dict[str, Table], list[str]]:
    """Leave out a test or dev split in which no row has its label, as in competitions."""
    kept, said = {}, []
    for split, table in tables.items():
        hidden = [c for c in table.names if all(row.values.get(c) is None for row in table.rows)]
        if hidden and split != "train" and len(tables) > 1:
            said.append(f"the split {split} was not read, as none of its rows has a value in '{hidden[0]}'.")
        else:
            kept[split] = table
    return kept, said


def _with_names(settings: Settings, tables: Mapping[str, Table]) -> Settings:
    """Use the names of label numbers as the task's labels, in their order."""
    if settings.labels is not None:
        return settings
    answers = {settings.columns.get(key, key) for key in ("label", "output", "answer", "completion")}
    labels = dict.fromkeys(
        label
        for table in tables.values()
        for c, names in table.names.items()
        if c in answers
        for label in names
    )
    return replace(settings, labels=tuple(labels)) if labels else settings


def _renamed(row: Row, settings: Settings, seen: _Seen) -> Row:
    """Rename the columns that the user listed to the names of their contents."""
    if not settings.columns:
        return row
    own = {column: key for key, column in settings.columns.items()}
    values: dict[str, Any] = {}
    for key, value in row.values.items():
        if key in own:
            values[own[key]] = value
        elif key in settings.columns:
            # the user named another column for this key
            seen.unread[key] += 1
        else:
            values[key] = value
    return Row(row.where, values, settings.columns)


def _check_columns(name: str, tables: Mapping[str, Table], settings: Settings) -> None:
    if not settings.columns:
        return
    known = {column for table in tables.values() for row in table.rows for column in row.values}
    missing = [column for column in settings.columns.values() if column not in known]
    if missing:
        row = next(row for table in tables.values() for row in table.rows)
        raise DataError(
            f"{row.where}: 'columns' in {settings.origin} names the column '{missing[0]}', which task "
            f"'{name}' does not have; found "
            f"{', '.join(map(repr, row.values))}.{did_you_mean(missing[0], row.values)} If the tasks have "
            "different columns, write 'columns' into each task's task.json."
        )


def _example(row: Row, settings: Settings, seen: _Seen) -> Example:
    """Build the example of a row.

    The prompt lists the options of a row; it lists the labels of the task only if ``list_labels`` says so. An
    input without instruction and options stays unchanged, otherwise ``Answer:`` is added at its end.
    """
    format, needed = format_of(row, settings.format, settings.way_of_columns)
    asked = format.read(row, settings.instruction is not None or row.filled("instruction"))
    _count(row, format, needed, asked, seen)
    if asked.continued:
        return _text(row, asked, settings, seen)
    seen.asked = seen.asked or row
    given = listed(row.values.get("options"))
    shown = None if given is None or given == "" else checked_labels(given, row.where, "'options'")
    references = asked.references if asked.label is None else (_label_name(row, asked.label, settings),)
    unknown = asked.answer == "label" and settings.known and references[0] not in settings.known
    if unknown and references[0].isdecimal():  # a label number, which CSV gives as text
        references = (_label_name(row, int(references[0][:9]), settings),)
    if (options := settings.known or shown) is not None and options:
        check_outputs(row.where, asked.answer, references, options)
    if shown and settings.known:
        check_outputs(row.where, "options", shown, settings.known)
    seen.option_sets[shown or settings.labels] = None
    instruction = asked.instruction or settings.instruction
    head = _head(instruction, shown or (settings.labels if settings.list_labels else None))
    tail, added = asked.tail, bool(head and not asked.tail)
    if added:
        tail = CUE if asked.body else CUE.lstrip()
    chat = None
    if asked.messages is not None:
        chat = conversation(row, asked.messages, asked.tools, head, asked.head_at)
    return Example(
        head + asked.lead,
        asked.body,
        tail,
        references,
        row.get_id(),
        chat,
        added,
        shown or (),
        where=row.where,
    )


def _text(row: Row, asked: Asked, settings: Settings, seen: _Seen) -> Example:
    seen.text = seen.text or row
    given = [key for key in ("instruction", "labels") if getattr(settings, key) is not None]
    given += [key for key in ("instruction", "options") if row.filled(key)]
    if given:
        raise DataError(
            f"{row.where}: a row with only 'text' is a text to continue, found '{given[0]}' too, which "
            "would not be used. Leave it out, or give rows with an input and an output."
        )
    return Example("", "", "", asked.references, row.get_id(), where=row.where)


def _label_name(row: Row, number: int, settings: Settings) -> str:
    if settings.labels is None:
        raise DataError(
            f"{row.where}: 'label' is the number {number}, expected the name of a label; say what the "
            f'numbers stand for with "labels": ["name of 0", "name of 1", ...] in {settings.place}.'
        )
    if number >= len(settings.labels):
        raise DataError(
            f"{row.where}: 'label' is the number {number}, expected one below {len(settings.labels)}, as "
            f"there are {len(settings.labels)} labels: {', '.join(settings.labels)}."
        )
    return settings.labels[number]


def _count(row: Row, format: Format, needed: tuple[str, ...], asked: Asked, seen: _Seen) -> None:
    seen.formats[format.name] += 1
    read = {*needed, *format.may, *COMMON}
    seen.unread.update(key for key in row.values if key not in read and row.filled(key))
    if asked.messages is not None:
        seen.keys.update(unknown_keys(asked.messages))


def _unread(seen: _Seen) -> list[str]:
    """Say which fields of rows were not read."""
    said = []
    odd = {key: count for key, count in seen.unread.items() if key.casefold() not in _HARMLESS}
    for key, count in list(odd.items())[:10]:
        rows = counted(count, "row")
        hint = "" if key in KNOWN_FIELDS else did_you_mean(key, KNOWN_FIELDS)
        name = f"'{key}'" if key else "without a name"
        said.append(f"the field {name} of {rows} was not read.{hint}")
    if rest := list(odd)[10:]:
        said.append(f"{len(rest)} more fields were not read: {enumerated(rest)}.")
    if harmless := [f"'{key}'" for key in seen.unread if key not in odd]:
        said.append(f"fields that say where a row comes from were not read: {enumerated(sorted(harmless))}.")
    if seen.keys:
        near = {key: did_you_mean(key, sorted(KNOWN_KEYS)).strip(" ?") for key in sorted(seen.keys)}
        hints = [
            f"'{key}'" + (f" ({hint.replace('Did', 'did')}?)" if hint else "") for key, hint in near.items()
        ]
        said.append(f"messages have keys that some chat templates leave out: {enumerated(hints)}.")
    return said


def _labels(
    settings: Settings, seen: _Seen, found: Mapping[str, Sequence[Example]]
) -> tuple[tuple[str, ...] | None, str]:
    """Return the closed set of outputs, or None for free text, and the reason."""
    if settings.labels is not None:
        return settings.labels, "labels are given"
    if len(seen.option_sets) == 1 and (options := next(iter(seen.option_sets))) is not None:
        return options, "options are given"
    if seen.option_sets and None not in seen.option_sets:
        return None, "options are given"
    if list(seen.formats) == ["text_label"]:
        labels = {example.target for examples in found.values() for example in examples}
        rows = sum(map(len, found.values()))
        if len(labels) <= min(_MOST_LABELS, max(2, rows // 2)):
            return tuple(sorted(labels)), "the labels are those in the data"
    return None, "free text"


def _metric(name: str, settings: Settings, seen: _Seen, why: str) -> tuple[Any, str]:
    if seen.text is not None and seen.asked is not None:
        raise DataError(
            f"{seen.text.where}: a row with only 'text' is a text to continue, but {seen.asked.where} of "
            f"the same task '{name}' has an answer. Put the two into separate tasks."
        )
    if settings.metric is not None:
        return settings.metric, f"named in {PurePath(settings.origin).name}"
    if seen.text is not None:
        return "perplexity", "text to continue"
    return ("rouge_l" if why == "free text" else "exact_match"), why


@lru_cache(maxsize=64)  # all rows share one text: otherwise a long list of labels would be stored for each
def _head(instruction: str | None, options: tuple[str, ...] | None) -> str:
    lines = [instruction.strip()] if instruction else []
    if options:
        lines.append(f"Option: {', '.join(options)}")
    return "\n".join(lines) + "\n" if lines else ""


__all__ = ["CUE", "SPLITS", "build", "check_one_task", "grouped"]

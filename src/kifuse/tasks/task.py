"""Examples, tasks and streams of tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

from kifuse.errors import DataError, did_you_mean, printable
from kifuse.io.file_names import name_fault, name_key
from kifuse.io.storage import sha256_text
from kifuse.scoring.labels import BY_ROW, comparison_why
from kifuse.scoring.metrics import METRICS, metric_name
from kifuse.scoring.own_function import is_own, source_hash
from kifuse.tasks.on_disk import OnDisk, held
from kifuse.tasks.overlaps import Overlap, find_overlaps
from kifuse.tasks.sampling import visiting_order

Metric = str
"""Name of a metric: one of `METRICS`, or ``module:function`` for the user's own function."""
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Conversation:
    """The messages of a chat as in the data, for the tokenizer's own chat template.

    Args:
        text: JSON of an object with `messages`, and `tools` if there are any. The last message is the
            assistant's answer that is learned; the messages before it are the prompt. Stored as text, so that
            a conversation cannot be changed, is compared by content, and takes little memory.
    """

    text: str

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> Conversation:
        """Make a conversation from messages, and from the tools that the model may call."""
        content: dict[str, Any] = {"messages": list(messages)}
        if tools:
            content["tools"] = list(tools)
        return cls(json.dumps(content, ensure_ascii=False))

    @cached_property
    def _content(self) -> dict[str, Any]:
        return json.loads(self.text)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages, the learned answer last."""
        return self._content["messages"]

    @property
    def tools(self) -> list[Any] | None:
        """Definitions of the tools that the model may call, in the form that the template takes."""
        return self._content.get("tools")


@dataclass(frozen=True, slots=True)
class Example:
    r"""One question with its accepted answers.

    Args:
        head: Instruction and options; never cut.
        body: The text; its middle is cut when the prompt is too long.
        tail: The final cue such as ``"\nAnswer:"``, or an empty string; never cut.
        references: Accepted outputs; the first is the training target.
        id: Its identifier in the data, if it has one.
        conversation: The chat whose last turn it is, if it is a chat. A chat template renders this
            conversation; head, body and tail are then a transcript for people and for models without a
            template.
        cue_added: Whether the reader added the tail and it is not in the data; a chat template leaves such a
            cue out.
        options: The answers that its own row allows, if they differ from row to row; its answers are then
            compared as labels.
        note: A method's note for its loss; not saved.
        where: File and row that it was read from, for messages; it does not count when examples are compared.

    An example without any input is text to continue: every token of it is learned.
    """

    head: str
    body: str
    tail: str
    references: tuple[str, ...]
    id: str | None = None
    conversation: Conversation | None = None
    cue_added: bool = False
    options: tuple[str, ...] = ()
    note: str = ""
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.references, str) or not self.references:
            raise DataError(
                f"Example.references is {self.references!r}, expected a tuple of at least one text."
            )
        object.__setattr__(self, "references", tuple(self.references))
        for text in (self.head, self.body, self.tail, *self.references):
            if not isinstance(text, str):
                raise DataError(f"Example holds {text!r}, expected text in head, body, tail and references.")

    @property
    def input(self) -> str:
        """The whole prompt: head, body and tail."""
        return self.head + self.body + self.tail

    @property
    def target(self) -> str:
        """The output to learn."""
        return self.references[0]

    def content_hash(self) -> str:
        """Hash the input and the accepted answers of the example.

        Returns:
            SHA-256 over the input and the references, and over the conversation if it has tools; the place
            where the input is split does not count.
        """
        content = [self.input, *self.references]
        if self.conversation is not None and self.conversation.tools:
            # a transcript does not contain tools
            return sha256_text(json.dumps([content, self.conversation.text]))
        return sha256_text(json.dumps(content))

    def input_hash(self) -> str:
        """Hash the input of the example, or the text itself if it is a text to continue.

        Returns:
            The first 16 hexadecimal digits of SHA-256; examples that differ only in answers have the same.
        """
        asked = self.input or self.target
        if self.conversation is not None and self.conversation.tools:
            asked = json.dumps([asked, self.conversation.tools])
        return sha256_text(asked)[:16]

    def state(self) -> dict[str, Any]:
        """Describe the example as a JSON value."""
        found: dict[str, Any] = {"head": self.head, "body": self.body, "tail": self.tail}
        found |= {"references": list(self.references), "id": self.id}
        if self.conversation is not None:
            found["conversation"] = self.conversation.text
        if self.cue_added:
            found["cue_added"] = True
        if self.options:
            found["options"] = list(self.options)
        return found

    @classmethod
    def from_state(cls, found: Mapping[str, Any]) -> Example:
        """Rebuild the example that `state` described.

        Raises:
            KeyError: A part is missing.
            DataError: A part is not text.
        """
        chat = found.get("conversation")
        return cls(
            found["head"],
            found["body"],
            found["tail"],
            tuple(found["references"]),
            found["id"],
            None if chat is None else Conversation(chat),
            bool(found.get("cue_added")),
            tuple(found.get("options", ())),
            found.get("note", ""),
            found.get("where", ""),
        )

    @classmethod
    def held(cls, examples: Iterable[Example]) -> Sequence[Example]:
        """Keep examples in a tuple, or on disk if there are more than `on_disk.MANY`."""
        found = held(examples, lambda them: OnDisk(them, _state_here, cls.from_state))
        return tuple(found) if isinstance(found, list) else found


def _state_here(example: Example) -> dict[str, Any]:
    return {**example.state(), "note": example.note, "where": example.where}


@dataclass(frozen=True)
class Task:
    """A named set of examples to learn, with the metric that scores it.

    Args:
        name: Its name; unique in a stream, and also used for its files in a run folder.
        train: Examples to learn from. More than 10,000 of a split stay on disk and are read one by one.
        dev: Examples to choose settings with.
        test: Examples to score.
        labels: The closed set of outputs, or None for free text.
        metric: How a prediction is scored: a name of `METRICS`, ``"module:function"``, or a function of
            (prediction, references) or (prediction, example), which becomes its name.
        source: Where the examples come from, for the record of a run.
        warnings: What the reader found unusual but kept as published.
        format: The format in which the data was read, in a few words, such as ``"messages in train.jsonl"``.
        metric_why: The reason for this metric, in a few words.
        passed_over: What is in the data but was not read (files, splits, fields), one sentence each.
    """

    name: str
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...] | None
    metric: Metric
    source: str = ""
    warnings: tuple[str, ...] = ()
    format: str = ""
    metric_why: str = ""
    passed_over: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_task_name(self.name)
        for split in SPLITS:
            object.__setattr__(self, split, Example.held(getattr(self, split)))
        for notes in ("warnings", "passed_over"):
            object.__setattr__(self, notes, tuple(map(printable, getattr(self, notes))))
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
        try:
            object.__setattr__(self, "metric", metric_name(self.metric))
        except DataError as error:
            raise DataError(f"Task '{self.name}': {error}") from error

    @property
    def comparison_why(self) -> str:
        """How its answers are compared with the references, in a sentence without a full stop.

        Empty if the metric does not compare texts, such as JSON equality or a user's own function.
        """
        as_text = self.metric in METRICS and METRICS[self.metric].as_text
        by_row = self.labels is None and any(example.options for example in self.test)
        return (BY_ROW if by_row else comparison_why(self.labels)) if as_text else ""

    @property
    def metric_source(self) -> str | None:
        """SHA-256 of the source of the user's own metric function; None for a metric of `METRICS`."""
        return source_hash(self.metric) if self.metric not in METRICS and is_own(self.metric) else None

    def split(self, name: str) -> Sequence[Example]:
        """Return one split.

        Args:
            name: ``"train"``, ``"dev"`` or ``"test"``.

        Returns:
            Its examples, in the order of the data.

        Raises:
            DataError: If there is no such split.
        """
        if name not in SPLITS:
            raise DataError(
                f"Task '{self.name}' has no split '{name}', expected one of {', '.join(SPLITS)}."
                f"{did_you_mean(name, SPLITS)}"
            )
        return getattr(self, name)

    def split_hash(self, name: str) -> str:
        """Hash the content of one split, example by example in order.

        Args:
            name: ``"train"``, ``"dev"`` or ``"test"``.

        Returns:
            SHA-256 as 64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for place, example in enumerate(self.split(name)):
            digest.update(("\n" * bool(place) + example.content_hash()).encode("ascii"))
        return digest.hexdigest()

    def input_hashes(self) -> dict[str, list[str]]:
        """Hash the input of every example: a list for each split, in the form that `find_overlaps` takes."""
        return {split: [example.input_hash() for example in self.split(split)] for split in SPLITS}

    def subset(
        self, train: int | None = None, dev: int | None = None, test: int | None = None, seed: int = 0
    ) -> Task:
        """Keep a seeded random part of each split, balanced over the labels if there are any.

        A smaller subset is part of a larger one with the same seed, and the order of the data is kept.

        Args:
            train: How many training examples to keep; None or more than there are keeps all.
            dev: The same for dev.
            test: The same for test.
            seed: Seed of the draw.

        Returns:
            The smaller task.

        Raises:
            DataError: If a number is negative, or zero for train.
        """
        kept: dict[str, Sequence[Example]] = {}
        for name, count in zip(SPLITS, (train, dev, test), strict=True):
            examples = self.split(name)
            least = 1 if name == "train" else 0
            if count is not None and count < least:
                raise DataError(f"Task '{self.name}': {name} is {count}, expected at least {least} examples.")
            if count is None or count >= len(examples):
                kept[name] = examples
                continue
            order = visiting_order(examples, self.labels, (seed, self.name, name))
            kept[name] = Example.held(examples[index] for index in sorted(order[:count]))
        return replace(self, **kept)


@dataclass(frozen=True)
class TaskStream:
    """Tasks in the order in which they are learned.

    Args:
        name: The name of the stream.
        tasks: The tasks.
        passed_over: What is in the data beside the tasks and belongs to none, one sentence each.
    """

    name: str
    tasks: tuple[Task, ...]
    passed_over: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        # these texts contain file names, which may hold bytes that are not text
        object.__setattr__(self, "passed_over", tuple(map(printable, self.passed_over)))
        if not self.tasks:
            raise DataError(f"Task stream '{self.name}' holds no task, expected at least one.")
        check_different([task.name for task in self.tasks], f"Task stream '{self.name}'")

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What belongs to no task, and what the readers found unusual but kept, over all tasks."""
        return (*self.passed_over, *(warning for task in self.tasks for warning in task.warnings))

    def overlaps(self) -> list[Overlap]:
        """Find inputs that occur in more than one split, of the same task or of two tasks.

        Returns:
            One entry for each pair of splits that share inputs, in the order of the stream, with the number
            of distinct shared inputs.
        """
        return find_overlaps({task.name: task.input_hashes() for task in self.tasks})


def check_task_name(name: object) -> None:
    """Refuse a name that could not be a file name in a run folder, on Linux, macOS or Windows.

    Args:
        name: The name of a task.

    Raises:
        DataError: If it is empty, too long, a path, reserved, or has characters that a file name cannot have.
    """
    if fault := name_fault(name):
        raise DataError(f"Task name {fault}.")


def check_different(names: Sequence[str], where: str) -> None:
    """Refuse names that occur twice, or that some file systems treat as the same.

    Args:
        names: The names of tasks.
        where: What holds the names, for the message.

    Raises:
        DataError: If two names are equal except for letter case or the composition of accents.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = name_key(name)
        if key not in seen:
            seen[key] = name
            continue
        earlier = seen[key]
        if earlier == name:
            raise DataError(f"{where} holds task '{name}' twice; name each task once.")
        raise DataError(
            f"{where} holds the tasks '{earlier}' and '{name}', which differ only in letter case or "
            "accents. Some file systems treat them as the same name; rename one of them."
        )

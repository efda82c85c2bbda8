"""Findings about tasks' data before training; the same for `validate`, a run and a learner.

Without a tokenizer: repeated examples, inputs whose answers contradict each other, inputs that two splits
share, and test examples that are also trained on. With a tokenizer: inputs and answers that are too long, the
limits that would hold all of them, and one example of each task as exactly the text that is trained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from kifuse.tasks.encoded import Encoded, is_text
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.overlaps import Inputs, Overlap, find_overlaps
from kifuse.tasks.rendered_example import Rendered, render_example
from kifuse.tasks.task import SPLITS, Example, Task

_PORTION = 2000
"""Examples that are tokenised together, so that progress can be shown and memory use stays small."""

_NAMED = 8
"""Most places that a sentence names."""


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens over the training and test examples of a task, and numbers of texts that do not fit.

    Args:
        longest_input: Length of the longest input, uncut.
        longest_target: Length of the longest answer, uncut, with its end token.
        cut_inputs: Number of training inputs that lose their middle.
        cut_test_inputs: Number of test inputs that lose their middle.
        cut_answers: Number of training answers that lose their end.
        cut_test_answers: Number of test answers that would lose their end.
        unknown: Number of examples in both splits with characters for which the tokenizer has no token.
    """

    longest_input: int = 0
    longest_target: int = 0
    cut_inputs: int = 0
    cut_test_inputs: int = 0
    cut_answers: int = 0
    cut_test_answers: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Contradiction:
    """An input with two answers; neither answer is accepted by the other example."""

    input: str
    answers: tuple[str, str]


@dataclass(frozen=True)
class TaskFindings:
    """The findings about one task.

    Args:
        task: The task.
        repeated: For each split, the number of examples that repeat an earlier one: same input, same answers.
        contradictions: Number of training inputs with answers that contradict each other.
        contradiction: The first of these inputs.
        also_trained: Number of test examples whose input is also trained on, in this task or another.
        trained_in: Names of the tasks that train on them.
        lengths: Lengths of the texts; None without a tokenizer.
        rendered: The first training example as it is trained.
        rendered_test: The first test example in the same form; a kept task needs it, because no training
            examples are kept.
    """

    task: Task
    repeated: dict[str, int]
    contradictions: int
    contradiction: Contradiction | None
    also_trained: int
    trained_in: tuple[str, ...]
    lengths: Lengths | None
    rendered: Rendered | None
    rendered_test: Rendered | None

    def facts(self) -> dict[str, Any]:
        """Return what a record keeps of the findings: numbers and names, no text of the data."""
        found: dict[str, Any] = {
            "repeated": dict(self.repeated),
            "contradictions": self.contradictions,
            "also_trained": self.also_trained,
        }
        return found | (asdict(self.lengths) if self.lengths else {})


@dataclass(frozen=True)
class Findings:
    """The findings about tasks that are learned together or one after another.

    Args:
        tasks: One entry per task, in the order of the tasks.
        overlaps: Inputs that two splits share, also with tasks that were learned earlier.
        max_input: The limit at which inputs are cut; None without a tokenizer.
        max_target: The limit at which answers are cut.
        max_new_tokens: The limit of generated answers; None means the same as `max_target`.
    """

    tasks: tuple[TaskFindings, ...]
    overlaps: tuple[Overlap, ...]
    max_input: int | None = None
    max_target: int | None = None
    max_new_tokens: int | None = None

    def notes(self, most: int | None = _NAMED) -> list[str]:
        """Put all findings into words, one sentence for each kind of finding.

        Args:
            most: Most places that a sentence names; None names all.
        """
        contradicting = [
            f"{each.task.name} {each.contradictions:,}" for each in self.tasks if each.contradictions
        ]
        found = [
            ("No test examples, and so no score", [e.task.name for e in self.tasks if not e.task.test]),
            ("Examples that repeat another one of their split (same input, same answers)", self._repeated()),
            ("Training inputs whose answers contradict each other", contradicting),
            ("Test examples whose input is also trained on", self._also_trained()),
            ("Inputs that are in two splits", self._shared()),
            (
                "Examples with characters that the tokenizer replaces, as it has no token for them",
                self._unknown(),
            ),
        ]
        said = [f"{what}: {_listed(places, most)}." for what, places in found if places]
        advice = (self.input_advice(most), self.target_advice(most), self.generation_advice(most))
        return said + [line for line in advice if line]

    def input_advice(self, most: int | None = _NAMED) -> str:
        """Say which inputs are too long, and the limit that would hold all; empty if none is too long."""
        longest = (each.lengths.longest_input for each in self.tasks if each.lengths)
        cut = self._cut("cut_inputs", "cut_test_inputs")
        return _too_long("Inputs", "data.max_input", self.max_input, "middle", cut, longest, most)

    def target_advice(self, most: int | None = _NAMED) -> str:
        """Say which answers are too long, and the limit that would hold all; empty if none is too long."""
        longest = (each.lengths.longest_target for each in self.tasks if each.lengths)
        cut = self._cut("cut_answers", "cut_test_answers")
        return _too_long("Answers", "data.max_target", self.max_target, "end", cut, longest, most)

    def generation_advice(self, most: int | None = _NAMED) -> str:
        """Say which tasks have answers longer than what is generated; empty if none has."""
        limit = self.max_new_tokens
        short = [
            f"{each.task.name} {each.lengths.longest_target:,}"
            for each in self.tasks
            if limit is not None and each.lengths and each.lengths.longest_target > limit
        ]
        if not short:
            return ""
        return (
            "The longest answers are cut when they are generated, as evaluation.max_new_tokens is "
            f"{limit:,}: {_listed(short, most)} tokens; null generates as many as data.max_target."
        )

    def _cut(self, train: str, test: str) -> list[str]:
        return [
            f"{each.task.name}/{split} {getattr(each.lengths, key):,} of {len(each.task.split(split)):,}"
            for each in self.tasks
            for split, key in (("train", train), ("test", test))
            if each.lengths and getattr(each.lengths, key)
        ]

    def _repeated(self) -> list[str]:
        return [
            f"{each.task.name}/{split} {count:,} of {len(each.task.split(split)):,}"
            for each in self.tasks
            for split, count in each.repeated.items()
        ]

    def _unknown(self) -> list[str]:
        return [
            f"{each.task.name} {each.lengths.unknown:,} of {len(each.task.train) + len(each.task.test):,}"
            for each in self.tasks
            if each.lengths and each.lengths.unknown
        ]

    def _also_trained(self) -> list[str]:
        names = {each.task.name for each in self.tasks}
        earlier = [
            f"{test} {overlap.count:,} input{'s' if overlap.count > 1 else ''} (in {train}/train)"
            for overlap in self.overlaps
            for test, train in _test_and_train(overlap)
            if test not in names and train in names
        ]
        return earlier + [
            f"{each.task.name} {each.also_trained:,} of {len(each.task.test):,} "
            f"(in {_listed([f'{name}/train' for name in each.trained_in], 3)})"
            for each in self.tasks
            if each.also_trained
        ]

    def _shared(self) -> list[str]:
        """Pairs of splits of these tasks that share inputs, except pairs of training and test."""
        names = {each.task.name for each in self.tasks}
        return [
            f"{each.task_a}/{each.split_a} and "
            f"{'' if each.task_a == each.task_b else f'{each.task_b}/'}{each.split_b} {each.count:,}"
            for each in self.overlaps
            if {each.task_a, each.task_b} & names and not _test_and_train(each)
        ]


def look_through(
    tasks: Sequence[Task],
    encoder: Encoder | None = None,
    *,
    earlier: Mapping[str, Inputs] | None = None,
    max_new_tokens: int | None = None,
    done: Callable[[int], None] | None = None,
) -> Findings:
    """Collect the findings about tasks.

    Args:
        tasks: The tasks.
        encoder: The run's encoder; with None lengths are not known, and examples are shown as they are in the
            data.
        earlier: Hashes of the inputs of tasks that were learned before, by the task's name.
        max_new_tokens: `evaluation.max_new_tokens` of the run.
        done: Called with the number of examples that were tokenised since the last call; examples are then
            tokenised in portions. With None each split is tokenised at once, as in training, so that both can
            use the same cache.

    Returns:
        The findings.

    Raises:
        DataError: For the reasons given in `Encoder.encode_many`.
    """
    inputs: dict[str, Inputs] = {**(earlier or {}), **{task.name: task.input_hashes() for task in tasks}}
    trained = {name: set(found.get("train", ())) for name, found in inputs.items()}
    return Findings(
        tuple(_look(task, inputs[task.name], trained, encoder, done) for task in tasks),
        tuple(find_overlaps(inputs)),
        encoder.max_input if encoder else None,
        encoder.max_target if encoder else None,
        max_new_tokens,
    )


def _too_long(
    what: str,
    key: str,
    limit: int | None,
    loses: str,
    cut: Sequence[str],
    longest: Iterable[int],
    most: int | None,
) -> str:
    """Say what loses tokens at a limit, and the limit that would hold all; empty if nothing loses tokens."""
    if not cut:
        return ""
    return (
        f"{what} longer than {key} ({limit:,} tokens) lose their {loses}: {_listed(cut, most)}; "
        f"{key}: {holding(max(longest))} would hold all."
    )


def holding(tokens: int) -> int:
    """A round limit that holds this number of tokens."""
    step = 64 if tokens > 128 else 8
    return -(-tokens // step) * step


def _look(
    task: Task,
    inputs: Inputs,
    trained: Mapping[str, set[str]],
    encoder: Encoder | None,
    done: Callable[[int], None] | None,
) -> TaskFindings:
    repeated = {
        split: len(task.split(split)) - len({bytes.fromhex(e.content_hash()) for e in task.split(split)})
        for split in SPLITS
    }
    clashes = _contradictions(task.train, list(inputs["train"]))
    holders = [[name for name, asked in trained.items() if each in asked] for each in inputs["test"]]
    rendered, rendered_test = (
        render_example(split[0], encoder) if split else None for split in (task.train, task.test)
    )
    return TaskFindings(
        task,
        {split: count for split, count in repeated.items() if count},
        len(clashes),
        clashes[0] if clashes else None,
        sum(map(bool, holders)),
        tuple(dict.fromkeys(name for names in holders for name in names)),
        _lengths(task, encoder, done) if encoder else None,
        rendered,
        rendered_test,
    )


def _contradictions(examples: Sequence[Example], inputs: Sequence[str]) -> list[Contradiction]:
    """Find inputs with two examples that have no accepted answer in common."""
    first: dict[str, int] = {}
    found: dict[str, Contradiction] = {}
    for place, key in enumerate(inputs):
        before = first.setdefault(key, place)
        if before == place or key in found:
            continue
        other, example = examples[before], examples[place]
        if set(other.references).isdisjoint(example.references):
            found[key] = Contradiction(example.input, (other.target, example.target))
    return list(found.values())


def _lengths(task: Task, encoder: Encoder, done: Callable[[int], None] | None) -> Lengths:
    counts: dict[str, int] = defaultdict(int)
    longest = {"longest_input": 0, "longest_target": 0}
    for split, inputs, answers in (
        ("train", "cut_inputs", "cut_answers"),
        ("test", "cut_test_inputs", "cut_test_answers"),
    ):
        examples = task.split(split)
        at_once = _PORTION if done else max(len(examples), 1)
        for start in range(0, len(examples), at_once):
            portion = examples[start : start + at_once] if done else examples
            encoded = encoder.encode_many(portion)
            for example, each in zip(portion, encoded, strict=True):
                counts[inputs] += each.cut
                counts[answers] += each.target_cut
                counts["unknown"] += encoder.unknown(example, each)
                # a text to continue is split into pieces, so nothing of it is too long
                if not is_text(example):
                    _lengthen(longest, each)
            cut = (e for e, each in zip(portion, encoded, strict=True) if each.cut or each.target_cut)
            while some := list(islice(cut, _PORTION)):
                for each in encoder.uncut().encode_many(some):
                    _lengthen(longest, each)
            if done:
                done(len(portion))
    return Lengths(**longest, **counts)


def _lengthen(longest: dict[str, int], encoded: Encoded) -> None:
    longest["longest_input"] = max(longest["longest_input"], len(encoded.input_ids))
    longest["longest_target"] = max(longest["longest_target"], len(encoded.target_ids))


def _test_and_train(overlap: Overlap) -> list[tuple[str, str]]:
    """The task of the test split and that of the training split; empty for other pairs of splits."""
    sides = [(overlap.split_a, overlap.task_a), (overlap.split_b, overlap.task_b)]
    found = dict(sides)
    return [(found["test"], found["train"])] if found.keys() == {"train", "test"} else []


def _listed(places: Sequence[str], most: int | None) -> str:
    named = ", ".join(places[:most])
    return named if most is None or len(places) <= most else f"{named} and {len(places) - most} more"

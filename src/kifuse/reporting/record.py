"""The record of a run: one JSON with a schema version, the only thing that tables and pictures read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError

from kifuse import __version__
from kifuse.errors import RunError
from kifuse.evaluation.metrics import Metric, ScoreMatrix
from kifuse.file_names import leads_out
from kifuse.methods.shown import Event, Shown
from kifuse.reporting.former_names import FORMER
from kifuse.sealed import read_sealed, write_sealed

SCHEMA_VERSION = 1
FILE = "record.json"
RENDERED = "rendered.json"
"""File beside the record: of each task a test example as the model reads it."""


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None at any depth of lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _file_name(value: str) -> str:
    """Refuse a task's name that would lead out of the run's folder: its predictions are read by it."""
    if leads_out(value):
        raise ValueError(f"{value!r} is a path, expected a plain name")
    return value


def _event(entry: dict[str, Any]) -> dict[str, Any]:
    """Refuse an entry of a learner's history that lacks what is read of it, or has it otherwise."""
    undone = entry.get("event") == "rolled back"
    kinds = {"when": str, **({"tasks": list} if undone else {"task": str, "before": dict, "after": dict})}
    wrong = next((key for key, kind in kinds.items() if not isinstance(entry.get(key), kind)), None)
    if entry.get("event") not in ("learned", "refused", "rolled back"):
        wrong = "event"
    elif wrong is None and undone:
        wrong = None if all(isinstance(name, str) for name in entry["tasks"]) else "tasks"
    elif wrong is None:
        scores = [entry.get("seconds") or 0.0, *entry["before"].values(), *entry["after"].values()]
        known = entry["after"].keys() <= {*entry["before"], entry["task"]}
        wrong = None if known and all(type(score) in (int, float) for score in scores) else "before and after"
    if wrong is not None:
        raise ValueError(f"{wrong}: not what a learner writes there")
    return entry


_OF_A_MODEL = {
    "name": str,
    "given": bool,
    "family": str,
    "parameters": int,
    "commit": str,
    "files": dict,
    "adapter": dict,
}


def _model(found: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is on record of the base model where it is of another kind than what is written there."""
    for key, kind in _OF_A_MODEL.items():
        if key in found and not isinstance(found[key], kind):
            raise ValueError(f"{key}: not what is written there")
    for name, facts in found.get("files", {}).items():
        if not (isinstance(facts, dict) and isinstance(facts.get("sha256"), str)):
            raise ValueError(f"files.{name}: expected bytes, modified and sha256")
    return found


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=()
    )


class MethodRecord(_Part):
    """The method, its settings as they were used, and which data it may train on.

    `shown` is the method's own declaration of what its measurements and events mean. Records from before
    methods declared it have none. `own_adapter` says that the method brings an adapter that PEFT does not
    know.
    """

    name: str
    settings: dict[str, Any]
    data_class: Literal["replay-free", "real replay", "generated replay", "task id given", "all data"]
    shown: Shown | None = None
    own_adapter: bool = False


class TaskRecord(_Part):
    """One task: its data, and what training on it was. Fields are None until it has been trained on.

    `loss` holds (step, training loss); a loss that was no finite number is None. `events` are what the method
    had to say, in its own words. `per_tensor` holds what it measured of each trainable tensor: `names`,
    `sizes` (scalars) and `series` of as many numbers by name. `learning_rate` holds (step, rate).
    `kept_parameters` is what the task left: scalars of the adapter and of the method's state after it.

    Known before training, and None where an older kifuse did not look: `format` and `metric_why` in the
    reader's words; `metric_source`, the SHA-256 of the source of the user's own function that scores it;
    `comparison`, how answers are compared with references; `passed_over`, what stands in the data and was not
    read; `repeated`, examples that repeat another one, by split; `contradictions`, training inputs whose
    answers contradict each other; `also_trained`, test examples whose input is also trained on;
    `longest_input` and `longest_target` in tokens; `cut_...`, how many inputs lost their middle and answers
    their end; `unknown`, examples with characters that the tokenizer replaces.

    `seal` is the SHA-256 of the list of the task's files, `state/after-<k>/manifest.json`; `kept` that of a
    learner's `tasks/<k>.json`. Records of an earlier kifuse have neither.
    """

    name: Annotated[str, AfterValidator(_file_name)]
    metric: str
    labels: list[str] | None = None
    sizes: dict[str, int] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    cut_inputs: int | None = None
    cut_test_inputs: int | None = None
    cut_answers: int | None = None
    cut_test_answers: int | None = None
    unknown: int | None = None
    longest_input: int | None = None
    longest_target: int | None = None
    format: str | None = None
    metric_why: str | None = None
    metric_source: str | None = None
    comparison: str | None = None
    passed_over: list[str] = Field(default_factory=list)
    repeated: dict[str, int] | None = None
    contradictions: int | None = None
    also_trained: int | None = None
    train_steps: int | None = None
    examples_seen: int | None = None
    replayed_examples: int | None = None
    extra_forward_backward: int | None = None
    seconds_train: float | None = None
    kept_parameters: int | None = None
    loss: Annotated[list[tuple[int, float | None]], BeforeValidator(_finite)] = Field(default_factory=list)
    learning_rate: list[tuple[int, float]] = Field(default_factory=list)
    events: list[dict[str, Any]] = Field(default_factory=list)
    per_tensor: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    seal: str | None = None
    kept: str | None = None


class ScoreRecord(_Part):
    """One cell: task number `task` (from 0) scored after `after` tasks were learned (0: before any).

    `score` and `valid` (outputs that are a label of the task) are percentages; `valid` is None for a task
    without labels. `n` is the number of test examples. `predictions` is the SHA-256 of the file with them.
    `identified` is the percentage of inputs that a method which finds out their task took for the right one;
    None for others, and where that task was not learned yet.
    """

    after: int = Field(ge=0)
    task: int = Field(ge=0)
    score: float
    valid: float | None = None
    n: int
    seconds: float
    predictions: str | None = None
    identified: float | None = None


class RunRecord(_Part):
    """Everything a run was; see the field names.

    `lineage` is the history of a learner's folder, oldest first: what was learned, refused or rolled back,
    when, from which data (hash), with the scores of all tasks before and after. `max_forgetting` is the most
    points that a task may cost an earlier one there, and `min_score` the least that it must reach.
    `rendering` says in which `form` the model reads examples (``chat template`` or ``plain``) and `why`; a
    record without it is of an older kifuse.
    """

    schema_version: int = SCHEMA_VERSION
    kifuse_version: str
    status: Literal["running", "finished"]
    created: str
    rendering: dict[str, str] = Field(default_factory=dict)
    finished: str | None = None
    config: dict[str, Any]
    model: Annotated[dict[str, Any], AfterValidator(_model)]
    method: MethodRecord
    stream: str
    tasks: list[TaskRecord]
    scores: list[ScoreRecord] = Field(default_factory=list)
    overlaps: list[dict[str, Any]] = Field(default_factory=list)
    seeds: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    memory: dict[str, Any] = Field(default_factory=dict)
    peak_memory_mb: float | None = None
    lineage: list[Annotated[dict[str, Any], AfterValidator(_event)]] = Field(default_factory=list)
    max_forgetting: float | None = Field(default=None, ge=0)
    min_score: float | None = Field(default=None, ge=0)
    warnings: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @classmethod
    def load(cls, folder: Path | str) -> RunRecord:
        """Read the record of a run folder.

        Args:
            folder: The folder of the run.

        Returns:
            The record.

        Raises:
            RunError: There is none, it is of another schema, or a field is not as it must be.
            KifuseError: The file is no JSON.
        """
        file = Path(folder) / FILE
        if not os.path.lexists(file):
            raise RunError(f"{folder}: holds no run ({FILE} is missing). Name the folder of a run.")
        found, sealed = read_sealed(file)
        if not isinstance(found, dict):
            raise RunError(
                f"{file}: found a JSON {type(found).__name__}, expected an object; the record is damaged."
            )
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            writer = found.get("kifuse_version", "an unknown version")
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            remedy = "update kifuse to read it" if newer else "read it with the kifuse that wrote it"
            raise RunError(
                f"{file}: schema_version: found {version!r} (written by kifuse {writer}), expected "
                f"{SCHEMA_VERSION}, which is what kifuse {__version__} reads; {remedy}."
            )
        try:
            record = cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise RunError(f"{file}: {key}: {first['msg']}. The record is damaged.") from error
        if not sealed and any(task.seal for task in record.tasks):
            raise RunError(f"{file}: its seal is gone: the file was edited; restore it from a copy.")
        return record

    def save(self, folder: Path | str) -> None:
        """Write the record into a run folder, atomically.

        Numbers that JSON does not have (NaN, infinities) in free-form parts become null.

        Args:
            folder: The folder of the run.

        Raises:
            RunError: A free-form part holds something that JSON cannot hold.
        """
        file = Path(folder) / FILE
        try:
            # pydantic's own writer takes a tenth of the time of Python's, and writes null for NaN
            text = self.model_dump_json(indent=2)
        except PydanticSerializationError as error:
            raise RunError(f"{file}: cannot be written: {error}. Keep plain values in the record.") from error
        write_sealed(file, text)

    def matrix(self) -> ScoreMatrix:
        """Collect the scores.

        Returns:
            The score matrix.

        Raises:
            RunError: A score is of a task that the record does not have.
        """
        untested = [i for i, task in enumerate(self.tasks) if task.sizes.get("test") == 0]
        matrix = ScoreMatrix([task.name for task in self.tasks], untested)
        for cell in self.scores:
            matrix.set(cell.after, cell.task, cell.score)
        return matrix

    def shown(self) -> Shown:
        """What the measurements and events of the run's method mean.

        Returns:
            The method's declaration, or for older records what the names meant then.
        """
        return FORMER if self.method.shown is None else self.method.shown

    def fusions(self) -> list[tuple[TaskRecord, dict[str, Any], Event]]:
        """Find the events that were fusions of old and new weights.

        Returns:
            The task, the event on record, and how the method declares it.
        """
        kinds = {event.kind: event for event in self.shown().events if event.fusion_of}
        return [(t, e, kinds[e["kind"]]) for t in self.tasks for e in t.events if e.get("kind") in kinds]

    def learned(self) -> int:
        """Count the tasks that have been trained on.

        Returns:
            All of them for a finished run.
        """
        return (
            len(self.tasks)
            if self.status == "finished"
            else sum(t.train_steps is not None for t in self.tasks)
        )

    def summary(self) -> dict[str, Metric]:
        """AP, FWT, BWT and forgetting, each a number or the reason why there is none.

        Returns:
            The metrics over the whole stream, computed from the scores.
        """
        if self.learned() < len(self.tasks):
            reason = f"the run has learned {self.learned()} of its {len(self.tasks)} tasks"
            return dict.fromkeys(("AP", "FWT", "BWT", "forgetting"), Metric(None, reason))
        matrix = self.matrix()
        metrics = {
            "AP": matrix.average_performance(),
            "FWT": matrix.forward_transfer(),
            "BWT": matrix.backward_transfer(),
            "forgetting": matrix.forgetting(),
        }
        if metrics["forgetting"].value is None and metrics["BWT"].value is not None:
            reason = "needs the scores in between, which evaluation.full_matrix: true adds"
            metrics["forgetting"] = Metric(None, reason)
        if self.method.data_class == "all data":
            # There is no order of learning, hence no before and after, when all tasks are trained at once.
            reason = "all tasks are trained at once"
            metrics.update({name: Metric(None, reason) for name in ("FWT", "BWT", "forgetting")})
        return metrics

    def valid_share(self) -> float | None:
        """Average the share of valid outputs at the end of the stream.

        Returns:
            Percent, over the tasks with labels; None where there are none.
        """
        last = [s.valid for s in self.scores if s.after == len(self.tasks) and s.valid is not None]
        return sum(last) / len(last) if last else None

    def train_seconds(self) -> float:
        """Add up the time of training.

        Returns:
            Seconds over all tasks.
        """
        return sum(task.seconds_train or 0.0 for task in self.tasks)

    def replayed(self) -> int:
        """Add up what went through a step from the memory buffer.

        Returns:
            Examples, each time it was used.
        """
        return sum(task.replayed_examples or 0 for task in self.tasks)

    def kept_at_end(self) -> int | None:
        """Find what the last task left.

        Returns:
            Scalars of the adapter and of the method's state; None where it is not on record.
        """
        known = [task.kept_parameters for task in self.tasks if task.kept_parameters is not None]
        return known[-1] if known else None

    def extra_passes(self) -> int:
        """Add up the work beyond one forward and backward pass a step.

        Returns:
            Forward and backward passes over all tasks.
        """
        return sum(task.extra_forward_backward or 0 for task in self.tasks)

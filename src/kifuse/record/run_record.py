"""The record of a run: one JSON file with a schema version. Tables and pictures read nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticSerializationError

from kifuse import __version__
from kifuse.errors import RunError
from kifuse.io.sealed_json import read_sealed, write_sealed
from kifuse.methods.shown import Event, Shown
from kifuse.record.former_names import FORMER
from kifuse.record.parts import (
    MethodRecord,
    Part,
    ScoreRecord,
    TaskRecord,
    WatchedRecord,
    checked_event,
    checked_model,
)
from kifuse.record.score_matrix import Metric, ScoreMatrix

SCHEMA_VERSION = 1
FILE = "record.json"
RENDERED = "rendered.json"
"""File beside the record. It holds a test example of each task as the model reads it."""


class RunRecord(Part):
    """Everything that is known about a run; most field names say what they hold.

    `watched` are the tasks that are scored beside the stream, and `watch_scores` their scores; `task` there
    is a place in `watched`.

    `lineage` is the history of a learner's folder, oldest first: what was learned, refused or rolled back,
    when, from which data (hash), with the scores of all tasks before and after. `max_forgetting` is the most
    points that a task may cost an earlier one there, and `min_score` the least that it must reach;
    `repair` says whether weights are pulled back before a task is taken back. `rendering` says in which
    `form` the model reads examples (``chat template`` or ``plain``) and `why`; a record without it is of an
    older kifuse.
    """

    schema_version: int = SCHEMA_VERSION
    kifuse_version: str
    status: Literal["running", "finished"]
    created: str
    rendering: dict[str, str] = Field(default_factory=dict)
    finished: str | None = None
    config: dict[str, Any]
    model: Annotated[dict[str, Any], AfterValidator(checked_model)]
    method: MethodRecord
    stream: str
    tasks: list[TaskRecord]
    scores: list[ScoreRecord] = Field(default_factory=list)
    watched: list[WatchedRecord] = Field(default_factory=list)
    watch_scores: list[ScoreRecord] = Field(default_factory=list)
    overlaps: list[dict[str, Any]] = Field(default_factory=list)
    seeds: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    memory: dict[str, Any] = Field(default_factory=dict)
    peak_memory_mb: float | None = None
    lineage: list[Annotated[dict[str, Any], AfterValidator(checked_event)]] = Field(default_factory=list)
    max_forgetting: float | None = Field(default=None, ge=0)
    min_score: float | None = Field(default=None, ge=0)
    repair: bool = False
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
            RunError: There is no record, it has another schema version, or a field has a wrong value.
            KifuseError: The file is not JSON.
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
            raise RunError(f"{file}: its seal is missing, so the file was edited; restore it from a copy.")
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

    def watch_row(self, after: int) -> dict[str, float]:
        """Scores of the watched tasks after so many tasks of the stream, by name."""
        return {
            self.watched[s.task].name: s.score
            for s in self.watch_scores
            if s.after == after and s.task < len(self.watched)
        }

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
            Their number; all tasks for a finished run.
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
            reason = "needs the scores after each task, which evaluation.full_matrix: true adds"
            metrics["forgetting"] = Metric(None, reason)
        if self.method.data_class == "all data":
            # When all tasks are trained at once, there is no before and after.
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
        """Count the examples from the memory buffer that went through a step.

        Returns:
            Their number; an example counts each time it was used.
        """
        return sum(task.replayed_examples or 0 for task in self.tasks)

    def kept_at_end(self) -> int | None:
        """Count the scalars that are kept after the last task.

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

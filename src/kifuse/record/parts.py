"""The parts of a run's record: its method, its tasks, its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kifuse.io.file_names import leads_out
from kifuse.method_catalog import DataClass
from kifuse.methods.shown import Shown


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None at any depth of lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _file_name(value: str) -> str:
    """Refuse a task's name that leads out of the run's folder: it is part of the path of its predictions."""
    if leads_out(value):
        raise ValueError(f"{value!r} is a path, expected a plain name")
    return value


def checked_event(entry: dict[str, Any]) -> dict[str, Any]:
    """Refuse an entry of a learner's history where a value that is read is missing or of another type."""
    undone, watched = entry.get("event") == "rolled back", entry.get("watched", {"before": {}, "after": {}})
    if entry.get("event") == "forgotten":
        if not (isinstance(entry.get("when"), str) and isinstance(entry.get("task"), str)):
            raise ValueError("when and task: not what a learner writes there")
        return entry
    if not (isinstance(watched, dict) and watched.keys() == {"before", "after"}):
        raise ValueError("watched: not what a learner writes there")
    if not all(isinstance(row, dict) and _are_numbers(row.values()) for row in watched.values()):
        raise ValueError("watched: not what a learner writes there")
    kinds = {"when": str, **({"tasks": list} if undone else {"task": str, "before": dict, "after": dict})}
    wrong = next((key for key, kind in kinds.items() if not isinstance(entry.get(key), kind)), None)
    if entry.get("event") not in ("learned", "refused", "rolled back"):
        wrong = "event"
    elif wrong is None and undone:
        wrong = None if all(isinstance(name, str) for name in entry["tasks"]) else "tasks"
    elif wrong is None:
        scores = [entry.get("seconds") or 0.0, *entry["before"].values(), *entry["after"].values()]
        known = entry["after"].keys() <= {*entry["before"], entry["task"]}
        wrong = None if known and _are_numbers(scores) else "before and after"
    if wrong is not None:
        raise ValueError(f"{wrong}: not what a learner writes there")
    return entry


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _repair(found: dict[str, Any]) -> dict[str, Any]:
    """Refuse the record of a repair where a value that is read is missing or of another type."""
    if not (type(found.get("steps")) is int and type(found.get("pull")) is float):
        raise ValueError("steps and pull: not what a learner writes there")
    rows = [found.get("best"), *(found.get("perplexity") or [None])]
    if not all(isinstance(row, dict) and _are_numbers(row.values()) for row in rows):
        raise ValueError("best and perplexity: not what a learner writes there")
    return found


_OF_A_MODEL = {
    "name": str,
    "given": bool,
    "family": str,
    "parameters": int,
    "commit": str,
    "files": dict,
    "adapter": dict,
}


def checked_model(found: dict[str, Any]) -> dict[str, Any]:
    """Refuse facts about the base model whose types differ from those that are written there."""
    for key, kind in _OF_A_MODEL.items():
        if key in found and not isinstance(found[key], kind):
            raise ValueError(f"{key}: not what is written there")
    for name, facts in found.get("files", {}).items():
        if not (isinstance(facts, dict) and isinstance(facts.get("sha256"), str)):
            raise ValueError(f"files.{name}: expected bytes, modified and sha256")
    return found


class Part(BaseModel):
    """A part of a record. It refuses unknown keys and is checked whenever it is changed."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=()
    )


class MethodRecord(Part):
    """The method, its settings as they were used, and which data it may train on.

    `shown` is the method's own declaration of what its measurements and events mean. Records from before
    methods declared it have none. `own_adapter` says that the method brings an adapter that PEFT does not
    know.
    """

    name: str
    settings: dict[str, Any]
    data_class: DataClass
    shown: Shown | None = None
    own_adapter: bool = False


class TaskRecord(Part):
    """One task: its data, and what happened in training. Fields are None until it has been trained on.

    `loss` holds (step, training loss); a loss that was no finite number is None. `events` are what the method
    reported, in its own words. `per_tensor` holds what the method measured of each trainable tensor: the
    tensors' `names`, their `sizes` (number of scalars), and in `series` by name one number for each tensor.
    `learning_rate` holds (step, rate). `kept_parameters` is the number of scalars in the adapter and in the
    method's state after the task.

    These are known before training, and None where an older kifuse did not look: `format` and `metric_why` in
    the reader's words; `metric_source`, the SHA-256 of the source of the user's own function that scores it;
    `comparison`, how answers are compared with references; `passed_over`, what is in the data and was not
    read; `repeated`, examples that repeat another one, by split; `contradictions`, training inputs whose
    answers contradict each other; `also_trained`, test examples whose input is also trained on;
    `longest_input` and `longest_target` in tokens; `cut_...`, how many inputs lost their middle and how many
    answers their end; `unknown`, examples with characters that the tokenizer replaces.

    `seal` is the SHA-256 of the list of the task's files, `state/after-<k>/manifest.json`; `kept` is the
    SHA-256 of a learner's `tasks/<k>.json`. Records of an earlier kifuse have neither. `forgotten` is when a
    learner's examples of the task were removed on request. `repaired` is how a learner's weights were pulled
    back towards those before the task: `steps`, `pull`, and `perplexity` of earlier tasks before the first
    step and after each.
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
    forgotten: str | None = None
    repaired: Annotated[dict[str, Any], AfterValidator(_repair)] | None = None


class ScoreRecord(Part):
    """One cell: task number `task` (from 0) scored after `after` tasks were learned (0: before any).

    `score` and `valid` (outputs that are a label of the task) are percentages; `valid` is None for a task
    without labels. `n` is the number of test examples. `predictions` is the SHA-256 of the file with them.
    `identified` is for methods that find out themselves which task an input is of: the percentage of inputs
    for which they found the right task. It is None for other methods, and where the task was not learned yet.
    Tasks of lm-evaluation-harness also have `stderr`, the standard error of `score` in points, if lm_eval
    gives one, and `measured`, every metric and standard error with lm_eval's names and scales.
    """

    after: int = Field(ge=0)
    task: int = Field(ge=0)
    score: float
    valid: float | None = None
    n: int
    seconds: float
    predictions: str | None = None
    identified: float | None = None
    stderr: float | None = None
    measured: dict[str, float] = Field(default_factory=dict)


class LmEvalRecord(Part):
    """How a task of lm-evaluation-harness is run.

    `task` is its name there, `version` the version of the task, and `harness` the version of lm_eval;
    `metric` and `filter` say which of its numbers is the score. `limit`, `num_fewshot` (as it was asked for)
    and `include_path` are those of the configuration.
    """

    task: str
    version: str
    harness: str
    metric: str
    filter: str
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int
    include_path: list[str] = Field(default_factory=list)


class WatchedRecord(Part):
    """A task that is scored and never trained on; `hash` is that of its `n` test examples.

    `kept` is the SHA-256 of a learner's `watched/<n>.json`; `forgotten` is when these examples were removed
    on request; from then on the task is not watched. `lm_eval` says how a task of
    lm-evaluation-harness is run.
    """

    name: Annotated[str, AfterValidator(_file_name)]
    metric: str
    labels: list[str] | None = None
    n: int
    hash: str
    metric_source: str | None = None
    kept: str | None = None
    forgotten: str | None = None
    lm_eval: LmEvalRecord | None = None

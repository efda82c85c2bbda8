"""The configuration of tasks that are scored and never trained on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from kifuse.config.values import MOST, Folder, Section, Text


class LmEvalConfig(Section):
    """Tasks of lm-evaluation-harness, which needs the extra `lm-eval`; a plain list gives the tasks."""

    tasks: list[Text] = Field(
        default_factory=list,
        description="Names of 'lm-eval ls tasks', also groups and tags. A task's first metric is its "
        "score; hellaswag:acc_norm chooses another one.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Number of documents of each task that are scored, from the first on; null: all.",
    )
    num_fewshot: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Examples shown before each question; null: the task's own number.",
    )
    batch_size: int = Field(
        default=8,
        ge=1,
        le=MOST,
        description="Requests that are answered at once.",
    )
    include_path: list[Folder] = Field(
        default_factory=list, description="Folders with your own task files. Code in them may run."
    )

    @field_validator("include_path", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class WatchConfig(Section):
    """Tasks outside the stream that are scored and never trained on: general ability, for example."""

    tasks: list[Text] = Field(
        default_factory=list,
        description=(
            "Folders or files of tasks with test examples. They are in no average, no memory and no training."
        ),
    )
    lm_eval: LmEvalConfig = Field(
        default_factory=LmEvalConfig, description="Tasks of lm-evaluation-harness, such as [hellaswag]."
    )
    when: Literal["each", "end"] = Field(
        default="each",
        description="each: scored before the first task and after each; end: before the first task and at "
        "the end.",
    )

    @field_validator("lm_eval", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return {"tasks": value} if isinstance(value, list) else value

"""The kinds of values in a configuration, and the base class of its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """Accepts '1e-3' for a float: YAML 1.1 reads an exponent without a dot as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _filled(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


MOST = 10**9
"""Largest number of steps, tokens or examples. More is a typing error, which libraries report confusingly."""

Float = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, Field(min_length=1)]
# strict=False only lets a text stand for a path; an empty text becomes None and is then refused.
Folder = Annotated[Path, Field(strict=False), BeforeValidator(_filled), AfterValidator(Path.expanduser)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, types are not converted, values are fixed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )

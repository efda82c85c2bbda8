"""Rows of data files, and the checks that every reader makes on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.on_disk import OnDisk, held

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file, its place there, and the file's own names of renamed fields."""

    where: str
    values: Mapping[str, Any]
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def held(cls, rows: Iterable[Row]) -> Sequence[Row]:
        """Keep rows in a list, or on disk if there are more than `on_disk.MANY`."""
        return held(rows, lambda them: OnDisk(them, _state, lambda found: cls(*found)))

    def called(self, key: str) -> str:
        """Name a field for a message, together with the file's own name of it."""
        return f"'{key}' (column '{self.columns[key]}')" if key in self.columns else f"'{key}'"

    def get_text(self, key: str, *, empty: bool = False) -> str:
        """Return the text of a required field.

        Args:
            key: Name of the field.
            empty: Whether an empty text is allowed.

        Returns:
            The unchanged text.

        Raises:
            DataError: If the field is missing, is not text, is empty, or is not valid Unicode.
        """
        if key not in self.values:
            found = ", ".join(f"'{name}'" for name in self.values) or "none"
            raise DataError(
                f"{self.where}: the field {self.called(key)} is missing, expected text; found the fields: "
                f"{found}.{did_you_mean(key, self.values)}"
            )
        value = self.values[key]
        if not empty and (value is None or (isinstance(value, str) and not value.strip())):
            found = "null, expected text in quotes" if value is None else "empty, expected text"
            way = "fill it in, or leave out the rows that have none."
            raise DataError(f"{self.where}: {self.called(key)} is {found}; {way}")
        return checked_text(value, self.where, self.called(key), empty=empty)

    def get_references(self, key: str, *, empty: bool = False) -> tuple[str, ...]:
        """Return the accepted outputs in a field: one text or a list of texts.

        Args:
            key: Name of the field.
            empty: Whether an empty text is allowed as an output.

        Returns:
            At least one output.

        Raises:
            DataError: If the field is missing or holds anything else.
        """
        value = self.values.get(key)
        if not isinstance(value, list):
            return (self.get_text(key, empty=empty),)
        if not value:
            raise DataError(f"{self.where}: '{key}' is an empty list, expected at least one accepted output.")
        return tuple(
            checked_text(item, self.where, f"'{key}' entry {number}", empty=empty)
            for number, item in enumerate(value, 1)
        )

    def filled(self, key: str) -> bool:
        """Whether a field has a value: not null, and not an empty text or list."""
        return self.values.get(key) not in (None, "", [])

    def instruction(self) -> str | None:
        """Return the row's own instruction, or None if it has none."""
        return self.get_text("instruction") if self.filled("instruction") else None

    def get_id(self) -> str | None:
        """Return the row's identifier as text, or None if it has none or an empty one.

        Raises:
            DataError: If it is neither text nor a whole number, or not valid Unicode.
        """
        value = self.values.get("id")
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise DataError(f"{self.where}: 'id' is {kind_of(value)}, expected text or a whole number.")
        return checked_text(str(value), self.where, "'id'", empty=True)


def _state(row: Row) -> list[Any]:
    return [row.where, row.values, row.columns]


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value for a message."""
    return _KINDS.get(type(value), type(value).__name__)


def checked_text(value: Any, where: str, what: str, *, empty: bool = False) -> str:
    """Check that a JSON value is usable text.

    Args:
        value: The value found.
        where: File and row, for the message.
        what: Name of the field, for the message.
        empty: Whether an empty text is allowed.

    Returns:
        The value.

    Raises:
        DataError: If it is not text, is blank, or contains half a surrogate pair.
    """
    if not isinstance(value, str):
        shown = f" ({value!r})" if isinstance(value, (bool, int, float)) else ""
        way = " If the answer is JSON, write it as text: json.dumps(value)." * isinstance(value, dict)
        raise DataError(f"{where}: {what} is {kind_of(value)}{shown}, expected text in quotes.{way}")
    if not empty and not value.strip():
        raise DataError(f"{where}: {what} is empty, expected text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {what} holds half a surrogate pair at character {error.start + 1}, expected valid "
            f"Unicode."
        ) from error
    return value


def checked_labels(value: Any, where: str, what: str) -> tuple[str, ...]:
    """Check a list of options.

    Args:
        value: The value found.
        where: File and row, for the message.
        what: Name of the field, for the message.

    Returns:
        The options in their order.

    Raises:
        DataError: If it is not a list of different, non-empty texts.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind_of(value)
        raise DataError(f"{where}: {what} is {found}, expected a list of at least one text.")
    labels = tuple(checked_text(item, where, f"{what} entry {n}") for n, item in enumerate(value, 1))
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise DataError(f"{where}: {what} names '{label}' twice, expected each option once.")
        seen.add(label)
    return labels


def check_outputs(where: str, key: str, references: Iterable[str], options: Collection[str]) -> None:
    """Refuse an output that is not one of the options.

    Args:
        where: File and row, for the message.
        key: Name of the field that holds the outputs.
        references: The accepted outputs of the row.
        options: The allowed options; in a dictionary each is found quickly.

    Raises:
        DataError: If an output is not among them.
    """
    for reference in references:
        if reference not in options:
            raise DataError(
                f"{where}: '{key}' is '{reference}', expected one of the options {', '.join(options)}."
                f"{did_you_mean(reference, options)}"
            )


def visible(paths: Iterable[Path], root: Path) -> list[Path]:
    """Sort paths and leave out hidden ones, such as the ``._`` files that macOS writes beside others.

    Args:
        paths: Files or folders inside ``root``.
        root: The folder of the data, which may itself be hidden.

    Returns:
        The paths in which no part below ``root`` starts with a dot.
    """
    return sorted(
        path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )

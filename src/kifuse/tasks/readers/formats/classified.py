"""Texts with a label: the label's name, or its number if the names are known."""

from __future__ import annotations

from kifuse.errors import DataError
from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.long_sequence import part_cue
from kifuse.tasks.readers.rows import Row


def read(row: Row, instructed: bool) -> Asked:
    """Read a text and its label."""
    key = "sentence" if "sentence" in row.values else "text"
    body, tail = part_cue(row.get_text(key))
    label = row.values["label"]
    number = None
    if isinstance(label, float) and label.is_integer():  # pandas gives floats in a column with gaps
        label = int(label)
    if label is None:
        raise DataError(
            f"{row.where}: 'label' is null, or -1, which means no label; expected the name or number of a "
            "label. Leave such rows out."
        )
    if isinstance(label, int) and not isinstance(label, bool):
        if label < 0:
            raise DataError(
                f"{row.where}: 'label' is {label}, which means no label; expected the name or number of a "
                "label. Leave such rows out."
            )
        number, references = label, (str(label),)
    else:
        references = (row.get_text("label"),)
    return Asked(body, references, "label", tail=tail, instruction=row.instruction(), label=number)


FORMAT = Format(
    "text_label",
    needs=(("sentence", "label"), ("text", "label")),
    read=read,
    about="GLUE, IMDB: a label by name, or by number where names are known (`ClassLabel`, or `labels`)",
)

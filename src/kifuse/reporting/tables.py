"""Tables as data, and as files: CSV for spreadsheets, Markdown for notes, LaTeX for papers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kifuse.io.storage import write_text
from kifuse.reporting.wording import MINUS, NONE, clean, for_markdown

FORMATS = ("csv", "md", "tex")

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    MINUS: "$-$",
    NONE: "--",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
}
# also after white space, and as full-width signs, which some spreadsheets read in the same way
_FORMULA = re.compile(r"[\s\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: The text that people read.
        value: The number, for sorting and for CSV; None for a text or a missing value.
        aside: The standard deviation, or what else `Table.spread` says, if there is one.
        note: A remark about the value.
        link: The run to which the page links.
    """

    text: str
    value: float | None = None
    aside: str | None = None
    note: str = ""
    link: Any = None

    def __str__(self) -> str:
        return self.text if self.aside is None else f"{self.text} ± {self.aside}"


@dataclass
class Table:
    """The content of a table; the first column names the rows.

    Attributes:
        name: The file name, without an ending.
        title: What the table shows.
        heads: The heads of the columns.
        rows: The rows, each with as many cells as there are heads.
        notes: Remarks below the table.
        total: A last row that sums up the others.
        sections: The numbers of rows after which a new group of rows begins.
        spread: What the number behind a ± means.
    """

    name: str
    title: str
    heads: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    total: list[Cell] | None = None
    sections: set[int] = field(default_factory=set)
    spread: str = "standard deviation"

    def numeric(self, column: int) -> bool:
        """Return whether a column holds numbers, or only dashes in their place."""
        cells = [row[column] for row in self.lines()]
        held = any(cell.value is not None for cell in cells)
        return held or (bool(cells) and all(cell.text == NONE for cell in cells))

    def lines(self) -> list[list[Cell]]:
        """Return all rows, with the total last."""
        return self.rows + ([self.total] if self.total else [])

    def csv(self) -> str:
        """Write the table as CSV: numbers are not rounded, deviations have their own columns, no notes."""
        spread = [any(row[i].aside is not None for row in self.lines()) for i in range(len(self.heads))]
        heads: list[str] = []
        for head, wide in zip(self.heads, spread, strict=True):
            heads += [_harmless(head), _harmless(f"{head} ({self.spread})")][: 1 + wide]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(heads)
        for row in self.lines():
            cells: list[str] = []
            for cell, wide in zip(row, spread, strict=True):
                cells += [_for_csv(cell), (cell.aside or "").replace(MINUS, "-")][: 1 + wide]
            writer.writerow(cells)
        return stream.getvalue()

    def md(self) -> str:
        """Write the table in Markdown, with its notes below."""
        sides = ["---:" if self.numeric(i) else ":---" for i in range(len(self.heads))]
        lines = [self.heads, sides, *([str(cell) for cell in row] for row in self.lines())]
        text = "\n".join("| " + " | ".join(for_markdown(c) for c in line) + " |" for line in lines) + "\n"
        return text + (
            "\n" + "".join(f"- {for_markdown(note)}\n" for note in self.notes) if self.notes else ""
        )

    def tex(self) -> str:
        """Write the table as a LaTeX `tabular` for the package booktabs, with its notes as comments."""
        sides = "".join("r" if self.numeric(i) else "l" for i in range(len(self.heads)))
        notes = "".join(f"% {' '.join(clean(note).split())}\n" for note in self.notes)
        return (
            f"% {' '.join(clean(self.title).split())}; needs \\usepackage{{booktabs}}\n{notes}"
            f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{_for_latex_row(self.heads)}\\midrule\n"
            + "".join(_for_latex_row([str(cell) for cell in row]) for row in self.lines())
            + "\\bottomrule\n\\end{tabular}\n"
        )


def write_tables(tables: list[Table], folder: Path) -> list[Path]:
    """Write tables in every format.

    Args:
        tables: The tables.
        folder: The folder to write to. It is made if it does not exist.

    Returns:
        The files.

    Raises:
        KifuseError: A file cannot be written.
    """
    files = []
    for table in tables:
        for ending in FORMATS:
            files.append(folder / f"{table.name}.{ending}")
            write_text(files[-1], getattr(table, ending)())
    return files


def _for_csv(cell: Cell) -> str:
    if cell.value is not None:
        return repr(cell.value) if cell.value % 1 else str(int(cell.value))
    return "" if cell.text == NONE else _harmless(cell.text)


def _harmless(text: str) -> str:
    """Change a text so that no spreadsheet reads it as a formula."""
    text = clean(text)
    return f"'{text}" if _FORMULA.match(text) else text


def _for_latex_row(cells: list[str]) -> str:
    return (
        " & ".join("".join(_LATEX.get(c, c) for c in " ".join(clean(cell).split())) for cell in cells)
        + r" \\"
        + "\n"
    )

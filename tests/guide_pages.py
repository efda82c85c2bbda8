"""Read the blocks of code in the guide and the README, each with how it is run here.

A block is run as it stands. `tests.guide_stands` replaces the things that a reader has and a test does not.
A comment directly above a block makes an exception:

- `<!-- not run: REASON -->`: the block cannot be run here; `REASONS` has every allowed reason.
- `<!-- real run: WHERE -->`: the output comes from a run with a real model; only the command is run here.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

REASONS = {
    "installs",
    "installs, and trains for minutes",
    "trains for minutes",
    "needs several processes",
    "needs several machines",
    "needs a GPU",
    "needs a server that is not installed",
    "needs an account",
    "gets data from the hub",
    "needs the published data, and trains for minutes",
}
"""The reasons why a block need not be run here."""

LANGUAGES = {"python", "yaml", "json", "console", "bash", "text"}
"""The languages of blocks. `bash` is never run and needs a reason; `text` is neither code nor command."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]+)\")?\s*$")
_MARK = re.compile(r"^ *<!-- (?P<kind>not run|real run): (?P<reason>.+?) -->$")
_INCLUDE = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_NAMED = re.compile(r"^# ([\w/-]+\.ya?ml)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: its place, language, title, the comment above it, and its text with quoted files."""

    page: Path
    line: int
    language: str
    title: str
    kind: str
    reason: str
    text: str

    @property
    def where(self) -> str:
        """Page and line, for a message."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str:
        """The name of the file that the block shows: its title, or a comment in its first line."""
        named = _NAMED.match(self.text)
        return self.title or (named[1] if named else "")


@dataclass(frozen=True)
class Command:
    """A command of a `console` block, and the output that the block shows."""

    words: tuple[str, ...]
    output: tuple[str, ...]


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page, in order.

    Raises:
        ValueError: A fence is not closed.
    """
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").split("\n")
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if opened is None:
            number += 1
            continue
        close = next(
            (n for n in range(number + 1, len(lines)) if lines[n].strip() == "```"),
            None,
        )
        if close is None:
            raise ValueError(f"{page}:{number + 1}: this block is not closed")
        indent = len(opened["indent"])
        text = "\n".join(line[indent:] for line in lines[number + 1 : close]) + "\n"
        text = _INCLUDE.sub(lambda file: (ROOT / file[1]).read_text(encoding="utf-8"), text)
        mark = _MARK.match(lines[number - 1]) if number else None
        kind, reason = (mark["kind"], mark["reason"]) if mark else ("", "")
        found.append(Block(page, number + 1, opened["language"], opened["title"] or "", kind, reason, text))
        number = close + 1
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a `console` block; a line that ends with a backslash goes on in the next."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
        elif line.strip():
            raise ValueError(f"{block.where}: output without a command")
    return [Command(tuple(shlex.split(words, comments=True)), trimmed(output)) for words, output in found]


def trimmed(lines: list[str]) -> tuple[str, ...]:
    """Remove spaces at the ends of lines, and empty lines at the beginning and the end."""
    plain = [line.rstrip() for line in lines]
    full = [i for i, line in enumerate(plain) if line]
    return tuple(plain[full[0] : full[-1] + 1]) if full else ()

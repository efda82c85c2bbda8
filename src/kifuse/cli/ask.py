"""``kifuse ask``: put questions to a learner, as it is now and as it was after earlier tasks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kifuse.cli.opened_learner import AFTER, FOLDER, JSON, MODEL, OWN_METHOD, TRUST, known_states, opened
from kifuse.errors import ConfigError
from kifuse.io.storage import decode_utf8, parse_json, read_bytes
from kifuse.terminal.safe_console import SafeConsole

if TYPE_CHECKING:
    from kifuse.learning.learner import ContinualLearner

NOW = "now"
"""The name of the present state beside the names of earlier states."""


def ask(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Questions. If there are none, one is read from stdin.", metavar="TEXT"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A file of questions: JSONL rows with 'input' or 'messages', or one text a line."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Hold a dialogue. An empty line ends it.")] = False,
    task: Annotated[
        str | None, typer.Option(help="A learned task. Its instruction is put before each text.")
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(help=f"{AFTER} Repeat it to see the answers of several states.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens of an answer.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    own_method: Annotated[str | None, typer.Option(help=OWN_METHOD)] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help=f"{JSON} It has one entry for each question.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the answers.")] = False,
) -> None:
    """Put questions to a learner and print its answers, one on a line.

    With one state and one question, only the answer is printed. Use 'now' to name the present state beside
    others: --after october --after now.
    """
    given = [bool(texts), file is not None, chat]
    if sum(given) > 1:
        raise ConfigError("ask: found several of TEXT, --file and --chat, expected one of them.")
    if chat and as_json:
        raise ConfigError(
            "ask: found --chat and --json, expected one of them. Ask a --file of chats instead."
        )
    asked: list[Any] = [] if chat else _questions(texts, file)
    with opened(
        folder, quiet=quiet, model=model, own_method=own_method, trust_remote_code=trust_remote_code
    ) as learner:
        named = [name for name in after or [] if name != NOW or NOW in learner.tasks]
        states = known_states(named, learner.tasks) if named else []
        states += [None] * (len(named) < len(after or []) or not states)
        options = {"task": task, "max_new_tokens": max_new_tokens}
        if chat:
            _chat(learner, states, options)
            return
        answers = [learner.generate(asked, after=state, **options) for state in states]
    told = [dict(zip(map(_name, states), said, strict=True)) for said in zip(*answers, strict=True)]
    if as_json:
        pairs = zip(asked, told, strict=True)
        typer.echo(json.dumps([{"question": question, "answers": said} for question, said in pairs]))
        return
    for question, said in zip(asked, told, strict=True):
        _print(question, said, alone=len(asked) == 1)


def _name(state: str | None) -> str:
    return NOW if state is None else state


def _questions(texts: list[str] | None, file: Path | None) -> list[Any]:
    """Return the questions: texts, rows and chats.

    Raises:
        ConfigError: There is no question, or a line of the file is not a row.
        KifuseError: The file cannot be read or is not UTF-8, or a line is not JSON.
    """
    if texts:
        return list(texts)
    if file is None:
        text = "" if sys.stdin.isatty() else sys.stdin.read()
        if not text.strip():
            raise ConfigError("ask: found no question, expected TEXT, --file, --chat, or a text on stdin.")
        return [text.rstrip("\n")]
    place = Path(os.path.expanduser(file))
    rows = file.suffix in (".jsonl", ".ndjson")
    # only a line feed ends a line: JSON text may hold other line breaks as they are
    lines = decode_utf8(read_bytes(place), place).split("\n")
    found = [
        _row(line, place, n) if rows else line.rstrip("\r") for n, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise ConfigError(f"--file: {file} is empty, expected a question on each line.")
    return found


def _row(line: str, file: Path, number: int) -> Any:
    row = parse_json(line, file, number)
    if not isinstance(row, (str, dict)):
        raise ConfigError(
            f"{file}:{number}: found {type(row).__name__}, expected a row with 'input' or 'messages'."
        )
    return row


def _print(question: Any, answers: dict[str, str], *, alone: bool) -> None:
    console = SafeConsole(highlight=False)
    if len(answers) == 1:
        text = next(iter(answers.values()))
        # among other answers, an answer of several lines is printed on one line, so that lines can be counted
        console.print(text if alone else " ".join(text.split("\n")), markup=False, soft_wrap=True)
        return
    shown = question if isinstance(question, str) else json.dumps(question, ensure_ascii=False)
    console.print(shown, style="bold", markup=False, soft_wrap=True)
    width = max(map(len, answers))
    for name, text in answers.items():
        console.print(f"  {name:<{width}}  {text}", markup=False, soft_wrap=True)


def _chat(learner: ContinualLearner, states: list[str | None], options: dict[str, Any]) -> None:
    """Hold a dialogue with each state: all read the same user's messages, and each one its own answers."""
    console = SafeConsole(highlight=False)
    told: dict[str | None, list[dict[str, str]]] = {state: [] for state in states}
    prompt = "you: " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt)
        except EOFError:
            return
        if not text.strip():
            return
        for state, messages in told.items():
            messages.append({"role": "user", "content": text})
            (said,) = learner.generate([messages], after=state, **options)
            messages.append({"role": "assistant", "content": said})
            console.print(
                f"{_name(state) if len(told) > 1 else 'model'}: {said}", markup=False, soft_wrap=True
            )

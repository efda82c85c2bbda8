"""Text from files steers no terminal."""

from __future__ import annotations

import io

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kifuse.terminal.safe_console import SafeConsole

ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "colours": "\x1b[31mred",
    "cursor": "\x1b[2J\x1b[H",
    "eight bits": "\x9b2J\x9d0;x\x9c",
    "return": "right\rwrong",
    "backspace": "no\b\byes",
    "direction": "\u202egnp.exe",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("live", [False, True], ids=["plain", "live"])
def test_nothing_in_a_text_reaches_the_terminal_as_a_command(text: str, live: bool):
    out, empty = io.StringIO(), io.StringIO()
    for file, shown in ((out, text), (empty, "")):
        console = SafeConsole(file=file, width=80, force_terminal=live, legacy_windows=False)
        table = Table("head")
        table.add_row(shown)
        if live:
            with Live(table, console=console, auto_refresh=False, transient=True) as view:
                view.console.print(Text(shown, "bold"))
        else:
            console.print(shown, markup=False, highlight=False)
            console.print(table)
            console.print(Text.assemble(("error:", "red"), shown))
    for sign in "\x1b\x9b\x9d\x9c\x07\x08\u202e":
        assert out.getvalue().count(sign) <= empty.getvalue().count(sign) + (live and sign == "\x1b") * 2
    assert out.getvalue().count("\r") == empty.getvalue().count("\r")


def test_text_colours_and_line_breaks_of_ones_own_stay():
    out = io.StringIO()
    console = SafeConsole(file=out, width=80, force_terminal=True, color_system="standard")
    console.print(Text("naïve 中文 🙂\nsecond", "red"))
    assert "\x1b[31mnaïve 中文 🙂" in out.getvalue() and "second" in out.getvalue().splitlines()[1]

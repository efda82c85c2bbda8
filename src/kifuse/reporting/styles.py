"""The style sheet of the page and of single figures, with the colours of a theme filled in."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from kifuse.reporting.colours import DARK, LIGHT, STEPS, Theme, text_on


@cache
def read_template(name: str) -> str:
    """Read a file of the folder `templates`, with line feeds as line ends."""
    file = resources.files("kifuse.reporting") / "templates" / name
    return file.read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def page_style() -> str:
    """Return the style sheet of a page, for light and dark."""
    sheet = read_template("page.css")
    for name, theme in (("LIGHT", LIGHT), ("DARK", DARK)):
        values = "".join(f"--{key}:{value};" for key, value in _variables(theme).items())
        sheet = sheet.replace(f"/* {name} */", values)
    steps = [f"{letter}{i}" for letter in "hd" for i in range(STEPS)]
    classes = [f".{s}{{fill:var(--{s});background:var(--{s});color:var(--{s[0]}t{s[1:]})}}" for s in steps]
    return sheet + "\n".join(classes) + "\n"


@cache
def figure_style() -> str:
    """Return the part of the page's style sheet that drawings need, in light colours, without variables.

    Converters of SVG files know neither variables nor the general names of the system's fonts.
    """
    drawings = read_template("page.css").partition("/* drawings */\n")[2].partition(".panels {")[0]
    colours = _variables(LIGHT)
    steps = [f"{letter}{i}" for letter in "hd" for i in range(STEPS)]
    classes = [f".{s}{{fill:var(--{s})}} .drawing .on-{s}{{fill:var(--{s[0]}t{s[1:]})}}" for s in steps]
    values = {**colours, "sans": 'Inter, "Helvetica Neue", Arial, "Noto Sans", "Liberation Sans", sans-serif'}
    return re.sub(r"var\(--(\w+)\)", lambda found: values[found[1]], drawings + "\n".join(classes))


def _variables(theme: Theme) -> dict[str, str]:
    plain = ("paper", "raised", "ink", "muted", "line", "axis", "accent", "faint", "right", "wrong")
    values = {name: getattr(theme, name) for name in plain}
    values.update({f"g{i}": colour for i, colour in enumerate(theme.groups)})
    values.update({f"p{i}": colour for i, colour in enumerate(theme.parts)})
    values.update({f"pt{i}": text_on(colour) for i, colour in enumerate(theme.parts)})
    for letter, diverging in (("h", False), ("d", True)):
        for i, colour in enumerate(theme.steps(diverging)):
            values.update({f"{letter}{i}": colour, f"{letter}t{i}": text_on(colour)})
    return values

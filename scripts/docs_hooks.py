"""What `make docs` does in addition to mkdocs: method pages, tables, equations as MathML, checks of loads.

- `methods/*.md` in the navigation stands for every page of that folder, in the order of `kifuse ls methods`.
- `<!-- table of methods -->` in a page becomes the list of methods, with links to their pages.
- If a page quotes REPRODUCIBILITY.md, its links are changed to be right in the guide.
- `<!-- tables of settings -->` becomes every key of a configuration, with its default and meaning.
- Equations become MathML, which browsers draw by themselves, without a script, a font or the network.
- If the finished site would load anything from another place, that is an error.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kifuse.config import RunConfig
from kifuse.problems import describe_field
from kifuse.registry import METHODS, Entry

ALL_METHODS = "methods/*.md"
TABLE = "<!-- table of methods -->"
SETTINGS = "<!-- tables of settings -->"
MEASUREMENTS = '--8<-- "REPRODUCIBILITY.md"'
_MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_LEFT_OVER = re.compile(r"\\[A-Za-z]+")
_FOREIGN_WORKER = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"></script>')
_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc\s*=\s*["']?(?:https?:)?//"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref\s*=\s*["']?(?:https?:)?//"""
    r"""|@import\s+["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//""",
    re.IGNORECASE,
)


def page_of(target: str, folder: Path) -> Path | None:
    """Return the page of a method's class, which is named after any of the class's names.

    Args:
        target: `module:Class`, as in the registry.
        folder: `docs/methods`.
    """
    names = [name for name, entry in METHODS.items() if entry.target == target]
    return next((file for name in names if (file := folder / f"{name}.md").is_file()), None)


def method_pages(folder: Path) -> list[str]:
    """Return every page of a folder, first those of registered methods in their order."""
    found = [page_of(entry.target, folder) for entry in METHODS.values()]
    pages = [file.name for file in found if file is not None]
    pages += sorted(file.name for file in folder.glob("*.md"))
    return list(dict.fromkeys(pages))


def methods_table(folder: Path) -> str:
    """Write the list of methods as a Markdown table."""
    lines = ["| name | old data | what it does | paper |", "| --- | --- | --- | --- |"]
    lines += [_row(name, entry, page_of(entry.target, folder)) for name, entry in METHODS.items()]
    return "\n".join(lines)


def _row(name: str, entry: Entry, page: Path | None) -> str:
    shown = f"`{name}`" if page is None else f"[`{name}`](methods/{page.name})"
    number = entry.paper.removeprefix("arXiv ")
    paper = f"[{number}](https://arxiv.org/abs/{number})" if number != entry.paper else entry.paper
    return f"| {shown} | {entry.data_class} | {entry.summary} | {paper or 'baseline'} |"


def settings_tables(model: type[BaseModel] = RunConfig, path: str = "") -> str:
    """Write every key of a configuration as Markdown tables, with one table for each section."""
    parts, rows = [], []
    for own, field in model.model_fields.items():
        name = field.alias or own
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            parts.append(
                f"## {path}{name}\n\n{field.description}\n\n{settings_tables(inner, f'{path}{name}.')}"
            )
        else:
            rows.append(f"| `{name}` | {_default(field)} | {describe_field(field)} | {field.description} |")
    if rows and not path:
        parts.append("## The run itself\n\n" + _settings_table(rows))
    elif rows:
        parts.insert(0, _settings_table(rows))
    return "\n\n".join(parts)


def _settings_table(rows: list[str]) -> str:
    return "\n".join(["| key | default | value | meaning |", "| --- | --- | --- | --- |", *rows])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    return f"`{yaml.safe_dump(field.get_default(call_default_factory=True)).splitlines()[0]}`"


def mathml(found: re.Match[str]) -> str:
    """Convert an equation that arithmatex has marked to MathML.

    Raises:
        PluginError: The equation has an unknown command.
    """
    text = html.unescape(found[2]).strip()
    display = text.startswith("\\[")
    latex = text[2:-2].strip()
    made = convert(latex, display="block" if display else "inline")
    if left := _LEFT_OVER.search(html.unescape(made)):
        raise PluginError(f"{left[0]!r} in the equation {latex!r} is not known to latex2mathml")
    return f'<div class="equation">{made}</div>' if display else made


def on_config(config: Any) -> Any:
    """Put the pages of the methods into the navigation."""
    pages = [f"methods/{name}" for name in method_pages(Path(config["docs_dir"]) / "methods")]
    for section in config["nav"]:
        for items in section.values() if isinstance(section, dict) else ():
            if isinstance(items, list) and ALL_METHODS in items:
                at = items.index(ALL_METHODS)
                items[at : at + 1] = pages
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables, and correct the links of the page that is also at the top of the repository."""
    if MEASUREMENTS in markdown:
        text = (Path(config["docs_dir"]).parent / "REPRODUCIBILITY.md").read_text("utf-8")
        # change links that are right at the top of the repository to be right from here
        markdown = markdown.replace(MEASUREMENTS, text.replace("](docs/", "]("))
    if TABLE in markdown:
        markdown = markdown.replace(TABLE, methods_table(Path(config["docs_dir"]) / "methods"))
    return markdown.replace(SETTINGS, settings_tables()) if SETTINGS in markdown else markdown


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Convert the equations of a page."""
    return _MATH.sub(mathml, html)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Replace the script that the offline plugin loads from elsewhere by `search-in-a-frame.js`."""
    up = "../" * page.url.count("/")
    return _FOREIGN_WORKER.sub(f'<script src="{up}assets/search-in-a-frame.js"></script>', output)


def on_post_template(output_content: str, *, template_name: str, config: Any) -> str:
    """Leave that script out of the page that is shown for a missing page."""
    return _FOREIGN_WORKER.sub("", output_content)


def on_post_build(*, config: Any) -> None:
    """Refuse a site that loads anything from elsewhere.

    Raises:
        PluginError: The site does so.
    """
    for file in Path(config["site_dir"]).rglob("*"):
        if file.suffix in (".html", ".css") and (found := _LOADS.search(file.read_text(encoding="utf-8"))):
            raise PluginError(f"{file} would load something from elsewhere: {found[0]}")

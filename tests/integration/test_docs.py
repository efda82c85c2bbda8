"""The guide and the README say what is so: their code is run, and every method has its page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kifuse.cli import app
from kifuse.comparing.grid import load_grid
from kifuse.config import RunConfig, load_config
from kifuse.method_catalog import METHODS
from kifuse.registry import build_method
from tests.guide_pages import DOCS, LANGUAGES, PAGES, REASONS, ROOT, Block, blocks, commands, trimmed
from tests.guide_stands import DESK, Stands, finished_runs, furnish, given, smollm2_outline
from tests.tiny import ENDS

pytestmark = pytest.mark.usefixtures("quick")
RUN = [page for page in PAGES if any(b.kind != "not run" and b.language != "text" for b in blocks(page))]
FAMILIES = {
    entry.target: [n for n, e in METHODS.items() if e.target == entry.target] for entry in METHODS.values()
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def outline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2_outline(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture
def stands(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_folder_llama: Path,
    tiny_folder_t5: Path,
    outline: Path,
) -> Stands:
    furnish(tmp_path, tiny_folder_llama)
    monkeypatch.chdir(tmp_path)
    return Stands(monkeypatch, tiny_folder_llama, tiny_folder_t5, outline)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Where the Python of one page runs: as a module, which types of its classes are looked up in."""
    made = ModuleType("page_of_the_guide")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    yield made


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_block_runs(
    page: Path,
    stands: Stands,
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    last_labels: list[int],
):
    if page.name == "reading-the-report.md":
        finished_runs()
    for block in blocks(page):
        if block.kind == "not run":
            continue
        if block.language == "python":
            if "args=args" in block.text:
                vars(module).update(given(stands.llama))
            code = compile(block.text, block.where, "exec", dont_inherit=True)
            exec(code, vars(module))  # noqa: S102 - the guide is ours
        elif block.language == "yaml":
            check_configuration(block)
        elif block.language == "json":
            assert [json.loads(line) for line in block.text.splitlines()]
        elif block.language == "console":
            check_commands(block, stands, monkeypatch)
    assert set(last_labels) <= ENDS, "what the page trains is not taught to stop"
    assert last_labels or not re.search(
        r"^\$ kifuse run|trainer\.train\(\)", page.read_text("utf-8"), re.MULTILINE
    )


def check_configuration(block: Block) -> None:
    """A whole configuration is written under its name and loaded; of a part, the rest is filled in."""
    text, found = block.text, yaml.safe_load(block.text)
    if "compare" in found:
        file = Path(block.file)
        file.write_text(text, encoding="utf-8")
        assert load_grid(file, {}, check_files=True).runs
        return
    if {"model", "method", "output"} <= set(found):
        file = Path(block.file or "config.yaml")
        file.write_text(text, encoding="utf-8")
        config = load_config(file, check_files=True)
    else:
        base: dict[str, Any] = yaml.safe_load(DESK)
        filled = base | {key: {**base.get(key, {}), **value} for key, value in found.items()}
        config = RunConfig.model_validate(filled)
    assert build_method(config.method.name, config.method.settings)


def check_commands(block: Block, stands: Stands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end well, and print what is shown where that does not depend on a real model."""
    for command in commands(block):
        assert command.words[0] == "kifuse", f"{block.where}: only commands of kifuse can be run here"
        # a model of random weights forgets more than a reader would allow
        limit = ["--max-forgetting", "100"] if "--max-forgetting" in command.words else []
        with monkeypatch.context() as patch:
            more = stands.prepare(command.words, patch)
            result = CliRunner().invoke(app, [*command.words[1:], *limit, *more])
        shown = " ".join(command.words)
        assert result.exit_code == 0, f"{block.where}: {shown}\n{result.output}"
        if command.output and block.kind != "real run":
            assert trimmed(result.output.splitlines()) == command.output, f"{block.where}: {shown}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r} is not known here"
        if block.kind == "not run":
            assert block.reason in REASONS, f"{block.where}: {block.reason!r}"
        if block.language == "bash":
            assert block.kind == "not run", f"{block.where}: bash is not run; make it a console block"
        if block.language == "text":
            assert not re.search(r"^(\$ |kifuse |pip |make |python )", block.text, re.MULTILINE), block.where


def test_files_that_the_guide_quotes_are_run_or_are_pages_themselves():
    texts = [page.read_text("utf-8") for page in PAGES]
    quoted = {file for text in texts for file in re.findall(r'^--8<-- "([^"]+)"', text, re.MULTILINE)}
    # methods of kifuse itself, which the contract tests run
    own = {"src/kifuse/methods/lwf.py", "src/kifuse/methods/derpp.py"}
    assert (
        quoted
        == {"examples/own_method.py", "examples/own_adapter.py", "CHANGELOG.md", "REPRODUCIBILITY.md"} | own
    )
    assert "own_adapter.py" in (ROOT / "tests/integration/test_own_method.py").read_text("utf-8")
    assert "own_method.py" in (ROOT / "tests/integration/test_examples.py").read_text("utf-8")


@pytest.mark.parametrize("names", FAMILIES.values(), ids=lambda names: names[0])
def test_every_method_has_a_page_with_its_settings_and_their_defaults(names: list[str]):
    page = next(
        (file for name in names if (file := DOCS / "methods" / f"{name.replace('+', 'p')}.md").is_file()),
        None,
    )
    assert page is not None, f"docs/methods/{names[0]}.md: there is no page of {', '.join(names)}"
    text = page.read_text("utf-8")
    for name in names:
        assert f"`{name}`" in text, f"{page.name} does not name {name}"
    rows = dict(re.findall(r"^\| (`[^|]+`) \| (`[^|]+`) \|", text, re.MULTILINE))
    shown = {}
    for settings, values in rows.items():
        keys, defaults = re.findall("`([^`]+)`", settings), re.findall("`([^`]+)`", values)
        shown |= dict(zip(keys, defaults * len(keys) if len(defaults) == 1 else defaults, strict=True))
    for key, default in type(build_method(names[0]))().settings().items():
        assert f"`{key}`" in text, f"{page.name} does not name the setting {key}"
        if key in shown:
            found = yaml.safe_load(shown[key])
            # YAML 1.1 reads an exponent without a dot as text; kifuse's configurations do not
            found = float(found) if isinstance(found, str) and isinstance(default, float) else found
            assert found == default, f"{page.name}: {key} is {shown[key]}, the code has {default!r}"

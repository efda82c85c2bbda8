"""The shape of the package: which part may import which, how long a module is, and what is never used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "kifuse"
FILES = sorted(ROOT.rglob("*.py"))

# A part may import the parts of lower rows only.
LAYERS: list[set[str]] = [
    {"errors", "knowledge", "method_catalog", "problems"},
    {"io", "processes", "scoring"},
    {"adapters"},
    {"methods"},
    {"tasks", "models", "registry", "record"},
    {"answering", "benchmarks", "merging", "own_method", "reporting", "saved_adapter"},
    {"config"},
    {"recipes", "streams"},
    {"driving"},
    {"running"},
    {"page_refresh", "terminal"},
    {"exporting"},
    {"learning"},
    {"comparing", "demo"},
    {"reproducing"},
    {"cli"},
    {"__main__"},
]
OUTSIDE: dict[str, set[str]] = {
    "knowledge": {"torch"},
    "methods": {"torch", "pydantic"},
    "errors": set(),
    "problems": {"pydantic", "pydantic_core"},
    "merging": {"torch"},
    "scoring": {"regex", "rouge_score", "sacrebleu", "sklearn", "transformers"},
    "io": {"filelock", "safetensors", "torch"},
    "record": {"pydantic", "pydantic_core"},
    "reporting": {"jinja2", "markupsafe", "pydantic", "pydantic_core", "rich", "scipy", "vl_convert"},
    "config": {"pydantic", "yaml"},
    "method_catalog": set(),
    "registry": {"pydantic"},
    "streams": set(),
    "recipes": {"yaml"},
    "benchmarks": set(),
}
"""What else a part may import beside Python's own library; a part that is not here is free."""


def _part(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def _nodes(file: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(file.read_text("utf-8"))))


@cache
def _imports(file: Path) -> list[str]:
    """Every module that a file imports anywhere, by its full name: for types only and by its name, too."""
    return list(_imported(file))


def _imported(file: Path) -> Iterator[str]:
    for node in _nodes(file):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called == "import_module" and isinstance(node.args[0].value, str):
                yield node.args[0].value
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            if node.module == "kifuse":
                yield from (f"kifuse.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def _own(file: Path) -> set[str]:
    """The parts of the package that a file imports, its own left out."""
    parts = {name.split(".")[1] for name in _imports(file) if name.startswith("kifuse.")}
    return parts - {_part(file), "__version__"}


def _strange(file: Path) -> set[str]:
    roots = {name.partition(".")[0] for name in _imports(file)} - {"kifuse"}
    return {root for root in roots if root not in sys.stdlib_module_names}


def test_every_part_has_its_layer():
    parts = {_part(file) for file in FILES} - {"__init__"}
    assert parts <= set().union(*LAYERS)


def test_imports_point_one_way():
    for file in FILES:
        part = _part(file)
        if part == "__init__":
            assert not _own(file) & {"cli", "demo"}, file
            continue
        level = next(i for i, layer in enumerate(LAYERS) if part in layer)
        below = set().union(*LAYERS[:level])
        if part == "problems":
            below = {"errors"}
        assert _own(file) <= below, file
        if part in OUTSIDE:
            assert _strange(file) <= OUTSIDE[part], file


def test_no_file_imports_itself_by_way_of_others():
    names = {".".join(("kifuse", *file.relative_to(ROOT).with_suffix("").parts)): file for file in FILES}
    packages = {name.removesuffix(".__init__"): name for name in names if name.endswith("__init__")}

    def modules(file: Path) -> Iterator[str]:
        for node in _nodes(file):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    # a name of a package is a file in it, or stands in its __init__
                    yield whole if whole in names else packages.get(whole, node.module or "")
        yield from _imports(file)

    # the root hands on what it is asked for, and nothing else
    graph = {
        name: {packages.get(m, m) for m in modules(file)} & set(names) - {name, "kifuse.__init__"}
        for name, file in names.items()
    }
    for name in names:
        # a package's own imports of its files are no way back to it
        graph[name] -= {
            m for m in graph[name] if m.endswith("__init__") and name.startswith(m[: -len("__init__")])
        }
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert not graph


def test_methods_know_knowledge_and_adapters_and_nothing_else_of_the_package():
    for file in FILES:
        if _part(file) == "methods":
            assert _own(file) <= {"errors", "knowledge", "adapters", "method_catalog"}
        if _part(file) == "knowledge":
            assert not _own(file)


def test_only_driving_and_running_know_the_trainer():
    for file in FILES:
        if _part(file) in {"driving", "running"}:
            continue
        for node in _nodes(file):
            if isinstance(node, ast.ImportFrom) and node.module in ("transformers", "accelerate"):
                assert not {a.name for a in node.names} & {"Trainer", "TrainerCallback", "Accelerator"}


def test_no_module_is_long_or_of_everything():
    for file in FILES:
        assert len(file.read_text("utf-8").splitlines()) <= 400, file
        assert file.stem not in {"utils", "helpers", "common", "misc"}, file


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    for file in FILES:
        roots = {name.partition(".")[0] for name in _imports(file)}
        assert not roots & {"pickle", "dill", "joblib", "shelve"}, file
        for node in _nodes(file):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found = (node.value.id, node.attr)
                assert found not in {("torch", "load"), ("torch", "save"), ("np", "load")}, file
                # PEFT reads pickled weights, and imports what a folder names
                assert found != ("PeftModel", "from_pretrained") or file.stem == "foreign", file
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert not (isinstance(node.value, ast.Constant) and node.value.value), file
            if isinstance(node, ast.Name):
                assert node.id not in {"eval", "exec"}, file


@pytest.mark.parametrize(
    "modules",
    [
        ["kifuse"],
        ["kifuse.cli"],
        ["kifuse.config", "kifuse.method_catalog", "kifuse.registry", "kifuse.models"],
        ["kifuse.benchmarks.catalog", "kifuse.streams"],
        ["kifuse.recipes"],
        ["kifuse.record.run_record", "kifuse.reporting.terminal_tables", "kifuse.reporting.changes"],
        ["kifuse.reporting.page", "kifuse.reporting.all_plots_and_tables", "kifuse.reporting.figures"],
        ["kifuse.record.score_matrix", "kifuse.scoring.scores", "kifuse.io.storage"],
    ],
    ids=lambda modules: modules[0],
)
def test_importing_this_imports_no_torch(modules: list[str]):
    code = (
        f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_method_interface_imports_no_engine():
    code = (
        "import sys, kifuse.methods.kif, kifuse.methods.recurrent_kif; "
        "print([m for m in ('transformers', 'accelerate', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_fills_records_and_draws_nothing():
    for file in FILES:
        if _part(file) in {"answering", "driving", "running"}:
            assert "reporting" not in _own(file), file

"""``kifuse fuse``: what it writes, what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from kifuse.cli import app
from kifuse.merging import load_importance, save_importance
from kifuse.merging.states import fuse
from tests.unit.merging.test_folders import pair, scores


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["fuse", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    """Two adapters and an importance on disk; the arguments that name them."""
    old, new = pair(tmp_path)
    tensors = load_file(new / "adapter_model.safetensors")
    file = tmp_path / "i.safetensors"
    save_importance(file, previous=scores(tensors, 3), current=scores(tensors, 4))
    return ["--previous", old, "--current", new, "--importance", file, "--output", tmp_path / "out"]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (
            ["--gamma", 0.3, "--quantile", 0.5, "--units", "rank"],
            {"gamma": 0.3, "quantile": 0.5, "units": "rank"},
        ),
        (["--fusion", "adaptive", "--tau", 0.5], {"fusion": "adaptive", "tau": 0.5}),
        (
            ["--fusion", "adaptive", "--units", "rank", "--unit-score", "mean"],
            {"fusion": "adaptive", "units": "rank", "unit_score": "mean"},
        ),
    ],
)
def test_options_do_what_the_library_does(
    arguments: list[object], settings: dict[str, Any], files: list[object], tmp_path: Path
):
    done = call(*files, *arguments)
    assert done.exit_code == 0, done.output
    assert f"8 tensors with 448 numbers fused ({settings.get('fusion', 'static')}), written to" in done.output
    old, new, found = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("old", "new", "out")
    )
    wanted = fuse(old, new, load_importance(tmp_path / "i.safetensors"), **settings)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert any(not torch.equal(found[name], new[name]) for name in wanted)


def test_average_needs_no_importance(tmp_path: Path):
    old, new = pair(tmp_path)
    done = call("--previous", old, "--current", new, "--fusion", "average", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    a, b, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("old", "new", "out"))
    for name, value in found.items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fusion", "statik"], "--fusion: found 'statik', expected one of static, adaptive, average."),
        (["--units", "heads"], "units: found 'heads', expected one of matrix, rank"),
        (["--tau", 0.5], "--tau: has no effect with --fusion static, expected it with adaptive only."),
        (["--fusion", "average"], "--importance: has no effect with --fusion average"),
        (["--gamma", 7], "gamma: found 7.0"),
        (["--previous", "nowhere"], "nowhere: no such folder"),
        (["--importance", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
    ],
)
def test_wrong_options_are_refused(arguments: list[object], words: str, files: list[object], tmp_path: Path):
    refused(call(*files, *arguments), words)
    assert not (tmp_path / "out").exists()


def test_a_missing_importance_is_said(tmp_path: Path):
    old, new = pair(tmp_path)
    done = call("--previous", old, "--current", new, "--output", tmp_path / "out")
    refused(done, "--importance: found nothing, expected a file")


def test_damaged_files_and_foreign_folders_are_refused(files: list[object], tmp_path: Path):
    (tmp_path / "i.safetensors").write_bytes(b"half")
    refused(call(*files), "not a readable safetensors file")
    (tmp_path / "new" / "adapter_model.safetensors").write_bytes(b"half")
    refused(call(*files), "adapter_model.safetensors: not a readable safetensors file")
    refused(call(*files, "--current", tmp_path), "no adapter there (adapter_config.json is missing)")


def test_nothing_is_overwritten_without_being_asked(files: list[object], tmp_path: Path):
    assert call(*files).exit_code == 0
    first = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    refused(call(*files, "--gamma", 0.1, "--quantile", 0.1), "found an adapter", "add --force")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == first
    assert call(*files, "--gamma", 0.1, "--quantile", 0.1, "--force").exit_code == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != first


def refused(done: Any, *words: str) -> None:
    assert done.exit_code == 2, done.output
    assert "error:" in done.output and "Traceback" not in done.output
    for text in words:
        assert text in done.output

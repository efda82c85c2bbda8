"""``kifuse show units``: what it prints, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import T5Config
from typer.testing import CliRunner

from kifuse.cli import app
from kifuse.cli.show import ranges


def show(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["show", "units", *map(str, arguments)])


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line by the first one, where columns are two spaces apart."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line}


def test_units_are_shown_by_layers_and_for_every_level(tiny_folder_t5: Path):
    done = show("--model", tiny_folder_t5, "--level", "rank", "--rank", 2)
    assert done.exit_code == 0, done.output
    assert "(t5), lora of rank 2: 24 trainable tensors with 1,536 numbers" in done.output
    assert "encoder layers 0-1" in done.output and "decoder layers 0-1" in done.output
    assert "layer.0.SelfAttention.q: lora_A 2x32 + lora_B 32x2" in done.output
    found = rows(done.output)
    assert found["together"] == ["1,536 in all", "24"]
    assert found["matrix"][:4] == ["24", "64", "64", "64"]
    assert found["rank"][:4] == ["24", "64", "64", "64"]
    assert found["element"][:4] == ["1,536", "1", "1", "1"]
    assert found["module"][:4] == ["12", "128", "128", "128"]
    assert found["layer"][:4] == ["4", "256", "256", "512"]


def test_targets_and_kinds_are_taken(tiny_folder_llama: Path):
    done = show(
        "--model", tiny_folder_llama, "--kind", "full", "--target", "v_proj,down_proj", "--level", "layer"
    )
    assert done.exit_code == 0, done.output
    assert "(llama), full: 4 trainable tensors with 5,120 numbers" in done.output
    assert "layers 0-1" in done.output and "self_attn.v_proj 16x32 + mlp.down_proj 32x64" in done.output


def test_many_tensors_of_a_unit_are_shortened(tiny_folder_llama: Path):
    done = show("--model", tiny_folder_llama, "--kind", "full", "--level", "layer")
    assert "k_proj 16x32 + self_attn.v_proj 16x32 + 6 more" in done.output
    assert "outside of layers" in done.output


def test_a_pipe_gets_plain_text_and_whole_lines(tmp_path: Path):
    T5Config(num_layers=3, decoder_start_token_id=0).save_pretrained(tmp_path)
    done = show("--model", tmp_path, "--level", "rank", "--kind", "dora")
    assert "\x1b" not in done.output
    lines = [line.split("   ") for line in done.output.splitlines()]
    pairs = [line for line in lines if "EncDecAttention.v: lora_A 8x512 + lora_B 512x8" in " ".join(line)]
    assert len(pairs) == 1 and pairs[0][0].strip() == "decoder layers 0-2" and pairs[0][-1].strip() == "24"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--level", "ranks"],
            "--level: found 'ranks', expected one of matrix, rank, element, module, layer.",
        ),
        (["--kind", "lore"], "--kind: found 'lore', expected one of lora, rslora, dora, ia3, full, osf."),
        (["--target", "q_porj"], "Its linear layers are called down_proj, gate_proj, k_proj"),
        (["--target", ","], "--target: found no name"),
    ],
)
def test_bad_names_give_the_known_ones(arguments: list[str], words: str, tiny_folder_llama: Path):
    done = show("--model", tiny_folder_llama, *arguments)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "error:" in done.output and words in done.output


@pytest.mark.parametrize("name", ["smollm2-136m", "/nowhere/at/all"])
def test_a_bad_model_is_refused(name: str):
    done = show("--model", name)
    assert done.exit_code == 2 and "error: model.name" in done.output and "Traceback" not in done.output


def test_markup_in_a_name_is_shown_as_it_is(tmp_path: Path):
    folder = tmp_path / "[bold]model[/bold]"
    T5Config(num_layers=1, decoder_start_token_id=0).save_pretrained(folder)
    assert "[bold]model[/bold] (t5)" in show("--model", folder).output


@pytest.mark.parametrize(
    "arguments", [["show", "--help"], ["show", "units", "--help"], ["fuse", "--help"]], ids=" ".join
)
def test_help_imports_no_torch(arguments: list[str]):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print([m for m in ('torch', 'transformers') if m in sys.modules]))\n"
        "from kifuse.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "Usage" in done.stdout and done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("numbers", "text"), [([0, 1, 2, 4, 6, 7], "0-2, 4, 6-7"), ([3], "3"), ([], "")])
def test_numbers_become_ranges(numbers: list[int], text: str):
    assert ranges(numbers) == text

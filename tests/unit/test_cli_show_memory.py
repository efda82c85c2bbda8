"""``kifuse show memory``: what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from kifuse.cli import app


def show(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["show", "memory", *map(str, arguments)])


def gib(text: str, row: str) -> float:
    found = re.search(rf"{row}.*?([\d.,]+)\s*$", text, re.MULTILINE)
    assert found, text
    return float(found[1].replace(",", ""))


@pytest.fixture
def seven_billion(tmp_path: Path) -> Path:
    """LLaMA-2-7B's shapes; a `config.json` is all there is."""
    LlamaConfig().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    return tmp_path


def test_the_parts_add_up_and_a_device_is_named(seven_billion: Path) -> None:
    done = show("--model", seven_billion, "--rows", 1, "--tokens", 256)
    assert done.exit_code == 0, done.output
    assert "lora of rank 8: 4,194,304 trained numbers; 1 examples of 256 tokens" in done.output
    # 6.6e9 numbers in linear layers of two bytes, 131 million in embeddings of four
    assert gib(done.output, "frozen weights") == pytest.approx(12.8, abs=0.1)
    assert gib(done.output, "AdamW") == pytest.approx(16 * 4194304 / 2**30, abs=0.01)
    parts = [gib(done.output, row) for row in ("frozen weights", "AdamW", "activations")]
    assert gib(done.output, "together ") == pytest.approx(sum(parts), abs=0.02)
    assert "one device of 16 GiB is enough" in done.output


def test_less_is_shown_for_what_takes_less(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=4).save_pretrained(tmp_path)

    def total(*more: object) -> float:
        return gib(show("--model", tmp_path, "--rows", 2, "--tokens", 256, *more).output, "together ")

    # 0.81e9 numbers in linear layers, 1.5 GiB in two bytes
    plain, eight = total(), total("--quantization", "8bit")
    assert total("--gradient-checkpointing") < plain
    assert eight < plain - 0.6
    assert total("--quantization", "4bit") < eight - 0.25
    assert total("--precision", "fp32") > plain + 1.2


def test_what_fits_nowhere_is_said(seven_billion: Path) -> None:
    config = json.loads((seven_billion / "config.json").read_text())
    (seven_billion / "config.json").write_text(
        json.dumps({**config, "hidden_size": 32768, "intermediate_size": 65536})
    )
    done = show("--model", seven_billion, "--rows", 1, "--tokens", 64)
    assert done.exit_code == 0, done.output
    assert "no device of up to 192 GiB is enough" in done.output


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--precision", "bf61"], "--precision: found 'bf61', expected one of fp32, bf16, fp16"),
        (["--quantization", "2bit"], "--quantization: found '2bit', expected one of none, 8bit, 4bit"),
        (["--kind", "lore"], "--kind: found 'lore'"),
        (["--kind", "full", "--quantization", "4bit"], "quantised weights stay frozen"),
        (["--target", "nothing_proj"], "nothing_proj"),
    ],
)
def test_a_mistake_is_one_message(wrong: list[str], said: str, seven_billion: Path) -> None:
    done = show("--model", seven_billion, *wrong)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())

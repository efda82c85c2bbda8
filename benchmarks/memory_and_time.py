"""Count memory and time of a training step by the size of the model, and measure them on this machine's CPU.

    python benchmarks/memory_and_time.py [--only count,time,memory]

To count, it uses `kifuse.models.memory` on the shapes of published models, up to 70 billion parameters, for a
GPU. To measure, it trains models with random weights, each in a process of its own: once for the time of a
step, and once for the peak of its memory. For the peak every tensor has memory pages of its own, which are
given back when it is freed. The records are in benchmarks/results/memory-and-time.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

from kifuse.adapters.kinds import add_adapter, add_empty_adapter
from kifuse.config import AdapterConfig
from kifuse.models.loading import shrink_frozen
from kifuse.models.memory import COPIES, needs_of

RESULTS = Path(__file__).parent / "results" / "memory-and-time.json"
GIB = 2**30


def llama(hidden: int, inner: int, layers: int, heads: int, kv: int, words: int, **more: Any) -> LlamaConfig:
    """Make the configuration of a LLaMA from its sizes."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=words,
        max_position_embeddings=4096,
        **more,
    )


def t5(width: int, inner: int, layers: int, heads: int, size: int = 64) -> T5Config:
    """Make the configuration of a T5 from its sizes."""
    return T5Config(
        d_model=width, d_ff=inner, num_layers=layers, num_heads=heads, d_kv=size, vocab_size=32128
    )


MODELS: dict[str, Any] = {
    "SmolLM2-135M": llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "SmolLM2-360M": llama(960, 2560, 32, 15, 5, 49152, tie_word_embeddings=True),
    "T5-large (0.7B)": t5(1024, 4096, 24, 16),
    "LLaMA of 1.1B": llama(2048, 5632, 22, 32, 4, 32000),
    "T5-XL (3B)": t5(1024, 16384, 24, 32, 128),
    "LLaMA-2-7B": llama(4096, 11008, 32, 32, 32, 32000),
    "LLaMA-2-13B": llama(5120, 13824, 40, 40, 40, 32000),
    "LLaMA-2-70B": llama(8192, 28672, 80, 64, 8, 32000),
}
MEASURED = ("SmolLM2-135M", "SmolLM2-360M", "LLaMA of 1.1B")
ROWS, TOKENS, TARGET = 8, 512, 16
FEW = 128  # tokens of an example in the measurements


def empty(config: Any) -> tuple[Any, bool]:
    """Make a model without numbers and with the default adapter; return if it is an encoder-decoder, too."""
    pair = isinstance(config, T5Config)
    with torch.device("meta"):
        model = (AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM).from_config(config)
    model.tie_weights()
    return add_empty_adapter(model, AdapterConfig(dropout=0.0), encoder_decoder=pair), pair


def counted(name: str, quantization: Any, checkpointing: bool) -> dict[str, Any]:
    """Count the memory that a device needs."""
    model, pair = empty(MODELS[name])
    parameters = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    needs = needs_of(
        model,
        pair,
        rows=ROWS,
        tokens=TOKENS,
        target=TARGET,
        precision="bf16",
        quantization=quantization,
        checkpointing=checkpointing,
    )
    return {
        "model": name,
        "parameters": parameters,
        "quantization": quantization,
        "checkpointing": checkpointing,
        "frozen_gib": needs.frozen / GIB,
        "trainable": needs.trainable,
        "activations_gib": needs.activations / GIB,
        "total_gib": needs.total(COPIES["Recurrent-KIF"]) / GIB,
    }


def measure(name: str, memory: bool) -> dict[str, Any]:
    """Measure the time of a step, or the peak of its memory, in this process."""
    import time

    from kifuse.driving.target_loss import TargetLoss

    torch.manual_seed(0)
    config = copy.deepcopy(MODELS[name])  # making a model writes its dtype into its configuration
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    model.get_input_embeddings().float()
    model = add_adapter(model, AdapterConfig(dropout=0.0), encoder_decoder=False, seed=0).train()
    shrink_frozen(model, "bf16")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(10, config.vocab_size, (ROWS, FEW))
    labels = torch.full((ROWS, TARGET + 1), -100)
    labels[:, 1:] = ids[:, -TARGET:]
    loss_of, times = TargetLoss(shift=True), []
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # start the measurement of the peak again
    for _ in range(4):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_cache=False,
                logits_to_keep=TARGET + 1,
            )
            loss = loss_of(out, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    shapes, pair = empty(MODELS[name])
    shapes.get_base_model().set_attn_implementation("eager")
    needs = needs_of(shapes, pair, rows=ROWS, tokens=FEW, target=TARGET, precision="bf16")
    frozen = {id(p): p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad}
    parameters = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    what = {"model": name, "rows": ROWS, "tokens": FEW, "parameters": parameters}
    if not memory:
        return {
            **what,
            "step_seconds": min(times[1:]),
            "all_seconds": times,
            "threads": torch.get_num_threads(),
        }
    return {
        **what,
        "peak_above_weights_gib": (_memory("VmHWM") - before) / GIB,
        "counted_above_weights_gib": (needs.activations + 12 * needs.trainable) / GIB,
        "weights_gib": sum(frozen.values()) / GIB,
        "counted_weights_gib": needs.frozen / GIB,
    }


def _alone(name: str, what: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    more = {"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {}
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, what],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **more},
    )
    return json.loads(done.stdout.splitlines()[-1])


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> None:
    """Count, measure, write the figures and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="count,time,memory")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, what = arguments.one
        print(json.dumps(measure(name, what == "memory")))
        return
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    if "count" in arguments.only:
        found["counted"] = [
            counted(name, quantization, checkpointing)
            for name in MODELS
            for quantization in ("none", "8bit", "4bit")
            for checkpointing in (False, True)
        ]
    for what in ("time", "memory"):
        if what in arguments.only:
            found[what] = [_alone(name, what) for name in MEASURED]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for part in ("counted", "time", "memory"):
        for row in found.get(part, []):
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})


if __name__ == "__main__":
    main()

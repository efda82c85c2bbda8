"""Generate answers as a user of PEFT and Trainer does, in a process of its own.

No part of kifuse's evaluation touches that process: neither its attention nor the memory that it keeps from
layer to layer. The process uses only kifuse's loader, since the model comes as a GGUF file with a tokenizer.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class PlainUser:
    """Asks the other process for answers, and waits for them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def answers(self, prompts: list[list[int]], rows: int, most: int) -> list[str]:
        """Return the text for each prompt, from `model.generate` on `rows` prompts at once."""
        self._connection.send((prompts, rows, most))
        return self._connection.recv()


@contextmanager
def plain_user(adapter: Path, precision: str) -> Iterator[PlainUser]:
    """Start a process with SmolLM2 and an adapter, for as long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, str(adapter), precision), daemon=True)
    process.start()
    there.close()
    here.recv()  # the process has loaded the model, and takes no more time from the measurement here
    try:
        yield PlainUser(here)
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, adapter: str, precision: str) -> None:
    from peft import PeftModel

    from kifuse.models.loading import load_backbone

    plain = load_backbone("smollm2-135m", precision=precision)
    # the attention that transformers itself chooses; kifuse loads a model for a CPU with another one
    plain.model.set_attn_implementation("sdpa")
    model = PeftModel.from_pretrained(plain.model, adapter).eval()
    connection.send("ready")
    while True:
        try:
            prompts, rows, most = connection.recv()
        except EOFError:
            return
        with plain.autocast():
            connection.send(_generate(model, plain.tokenizer, prompts, rows, most))


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], rows: int, most: int) -> list[str]:
    """Generate with `model.generate` in batches in the order of the data, padded on the left."""
    import torch

    found = []
    tokenizer.padding_side = "left"
    for start in range(0, len(prompts), rows):
        batch = tokenizer.pad({"input_ids": prompts[start : start + rows]}, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                **batch,
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        found += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found

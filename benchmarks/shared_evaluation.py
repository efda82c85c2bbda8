"""Measure how much faster two processes answer a test set than one process, with one thread each.

    python -m benchmarks.shared_evaluation

A small LLaMA with random weights answers 384 prompts in batches of 1,024 tokens. One process and two
processes work in turn. The ratio of their median times is printed, and their answers are compared. It needs
two idle cores: on a machine that does other work the ratio means little.
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS, PROMPTS, NEW, BATCH_TOKENS = 3, 384, 8, 1024


def main() -> None:
    """Time both in turn, and print the ratio."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    answers = set()
    for _ in range(ROUNDS):
        for processes, times in seconds.items():
            took, digest = _timed(processes)
            times.append(took)
            answers.add(digest)
    assert len(answers) == 1, "the processes answered otherwise than one alone"
    one, two = (statistics.median(times) for times in seconds.values())
    print(f"two processes took {two / one:.2f} of the time of one; the answers are the same")


def _timed(processes: int) -> tuple[float, str]:
    """Return the seconds of the slowest process, and a hash of the answers."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.shared_evaluation", "answer"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    took, digest = done.stdout.split()
    return float(took), digest


def _answer() -> None:
    """Answer the prompts as one of the processes; the first process prints."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kifuse.answering.generation import greedy_generate
    from kifuse.processes import Processes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4
    )
    model, draw = LlamaForCausalLM(config).eval(), random.Random(0)  # noqa: S311
    prompts = [draw.choices(range(4, 512), k=draw.randint(60, 160)) for _ in range(PROMPTS)]
    processes = Processes.of_launcher()

    def answers(some: list[list[int]]) -> list[str]:
        return greedy_generate(
            model,
            _Tokens(),
            some,
            encoder_decoder=False,
            max_new_tokens=NEW,
            batch_tokens=BATCH_TOKENS,
            processes=processes,
        )

    answers(prompts[:32])
    start = time.monotonic()
    found = answers(prompts)
    took = max(processes.gathered(time.monotonic() - start))
    if processes.rank == 0:
        print(took, hashlib.sha256("\n".join(found).encode()).hexdigest())
    if processes.count > 1:
        torch.distributed.destroy_process_group()


class _Tokens:
    """A tokenizer whose texts are the numbers of the tokens."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids: Any, **_: Any) -> str:
        """Write the numbers of the tokens."""
        return " ".join(map(str, ids))


if __name__ == "__main__":
    _answer() if "answer" in sys.argv else main()

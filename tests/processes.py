"""Run two processes on this machine that work together, as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[1]
TAKEN = ("EADDRINUSE", "Address already in use")
"""What torch prints if another process has taken the port just before it."""


def end_together() -> None:
    """End this process without an error: threads that gloo leaves sometimes abort the interpreter's end."""
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def run_two(module: str, *arguments: str, timeout: float) -> None:
    """Run a module of the tests as two processes; fail with their output unless both end without an error."""
    codes, outputs = end_of_two(module, *arguments, timeout=timeout)
    assert codes == [0, 0], "\n".join(outputs)


def end_of_two(module: str, *arguments: str, timeout: float) -> tuple[list[int], list[str]]:
    """Run a module of the tests as two processes; their exit codes, and what they printed."""
    for _ in range(2):
        codes, outputs = _started(module, arguments, timeout)
        taken = any(words in output for words in TAKEN for output in outputs)
        if codes == [0, 0] or not taken:
            return codes, outputs
    return _started(module, arguments, timeout)


def _started(module: str, arguments: tuple[str, ...], timeout: float) -> tuple[list[int], list[str]]:
    """Start the processes; return their exit codes and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    network = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        # the output goes to files, since a full pipe that nobody reads would stop the process
        files = [(Path(folder) / str(rank)).open("w+", encoding="utf-8") for rank in range(2)]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, **network, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for rank, file in enumerate(files)
        ]
        try:
            codes = [process.wait(timeout=timeout) for process in started]
        finally:
            for process in started:
                process.kill()
            outputs = []
            for file in files:
                file.seek(0)
                outputs.append(file.read())
                file.close()
    return codes, outputs

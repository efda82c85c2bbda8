"""One of two processes that run all scripts of users: starting the process takes longer than the scripts."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.contract import script_in_pieces, script_of_many
from tests.processes import end_together


def main(output: str) -> None:
    """Train models of which each process has the whole, then models that are cut into pieces."""
    torch.set_num_threads(1)
    gc.freeze()
    dist.init_process_group("gloo")
    script_of_many.train_all(Path(output) / "many")
    script_in_pieces.train_all(Path(output) / "pieces")
    end_together()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One of several processes that run the same configurations together."""

import gc
import json
import sys
from pathlib import Path

import torch

from kifuse.running.runner import run
from tests.processes import end_together
from tests.runs import METHODS, make_config


def main(model: str, stream: str, output: str, names: str) -> None:
    """Run each method into a folder of its own."""
    torch.set_num_threads(1)
    gc.freeze()
    for name in json.loads(names):
        run(make_config(Path(model), Path(stream), Path(output) / name, METHODS[name], **SECTIONS))
    end_together()


SECTIONS = {"model": {"adapter": {"rank": 2, "alpha": 8, "dropout": 0.0}}}

if __name__ == "__main__":
    main(*sys.argv[1:])

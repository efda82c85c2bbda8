"""Keeps other libraries' own bars and notices out of a run's terminal, or everything but errors."""

from __future__ import annotations

import logging
import os
import warnings

QUIET = "Print nothing but errors: no progress, no result. log.txt in the run's folder has it all."


def quieten_imports() -> None:
    """Turn off what bitsandbytes says while it is imported, which peft does; to be called before that."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quieten(*, everything: bool = False) -> None:
    """Turn off transformers' loading bars and its warnings about its own future.

    Args:
        everything: Turn all warnings off, of kifuse too; a run's log has them nevertheless.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if everything:
        warnings.simplefilter("ignore")
        os.environ.setdefault("WANDB_SILENT", "true")
        # with a handler of its own Python does not show a logger's warnings
        logging.getLogger("kifuse").addHandler(logging.NullHandler())
        # transformers shows its warnings by itself; what else listens to its logger still hears them
        for handler in logging.getLogger("transformers").handlers:
            handler.setLevel(logging.ERROR)

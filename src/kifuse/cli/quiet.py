"""Keep other libraries' progress bars and notices out of the terminal, or everything but errors."""

from __future__ import annotations

import logging
import os
import warnings

QUIET = "Print only errors, no progress and no result. log.txt in the run's folder has everything."


def quieten_imports() -> None:
    """Silence bitsandbytes during its import. Call this before peft is imported, which imports it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quieten(*, everything: bool = False) -> None:
    """Turn off transformers' loading bars and its warnings about future changes of its own.

    Args:
        everything: Whether to turn off all warnings, those of kifuse too. A run's log has them anyway.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if everything:
        warnings.simplefilter("ignore")
        os.environ.setdefault("WANDB_SILENT", "true")
        # Python does not show the warnings of a logger that has a handler of its own
        logging.getLogger("kifuse").addHandler(logging.NullHandler())
        # transformers prints its warnings by itself; other handlers of its logger still get them
        for handler in logging.getLogger("transformers").handlers:
            handler.setLevel(logging.ERROR)

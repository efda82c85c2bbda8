"""Keeps other libraries' own bars and notices out of a run's terminal."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Turn off transformers' loading bars, its warnings about its own future, and bitsandbytes' notices."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

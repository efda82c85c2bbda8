"""Keeps other libraries' own bars and notices out of a run's terminal."""

from __future__ import annotations

import warnings


def quieten() -> None:
    """Turn off transformers' loading bars, and its warnings about its own future."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

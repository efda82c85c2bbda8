"""Finds the Trainer that a callback belongs to."""

from __future__ import annotations

import sys
from typing import Any

from transformers import Trainer


def calling_trainer(callback: Any) -> Trainer | None:
    """The Trainer that is calling a callback's event, or None.

    The Trainer passes to an event neither itself nor anything that refers to it. But it is on the stack,
    because one of its methods calls the event.

    Args:
        callback: The callback, in one of its events.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            handler = getattr(owner, "callback_handler", None)
            if any(each is callback for each in getattr(handler, "callbacks", ())):
                return owner
        frame = frame.f_back
    return None

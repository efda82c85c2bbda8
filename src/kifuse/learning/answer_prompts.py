"""Answers the questions of a user with the model as it is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kifuse.errors import ConfigError, counted
from kifuse.running.engine import Engine
from kifuse.tasks.task import Example


def answer(
    engine: Engine, asked: Sequence[Example], max_new_tokens: Any, say: Callable[[str], object]
) -> list[str]:
    """Answer questions greedily, put in the form in which the model was trained.

    Args:
        engine: The engine; its model answers as it is now.
        asked: The questions.
        max_new_tokens: The most tokens of an answer; None for the configuration's number.
        say: Called with a line about the questions that are too long and lose their middle.

    Returns:
        One answer for each question.

    Raises:
        ConfigError: `max_new_tokens` is no number of at least 1.
        DataError: A question is too long, or the chat template refuses it.
    """
    if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
        raise ConfigError(f"max_new_tokens: found {max_new_tokens!r}, expected at least 1, or None.")
    prompts = [engine.encoder.prompt(each) for each in asked]
    whole, most = engine.encoder.uncut(), engine.encoder.max_input
    lengths = [len(whole.prompt(each)) for each in asked]
    if cut := [place for place, length in enumerate(lengths, 1) if length > most]:
        say(
            f"generate(): {counted(len(cut), 'question')} longer than data.max_input ({most:,} tokens) lost "
            f"the middle, first entry {cut[0]}; {max(lengths):,} tokens would hold all"
        )
    return engine.evaluator.generate(prompts, max_new_tokens or engine.evaluator.max_new_tokens)

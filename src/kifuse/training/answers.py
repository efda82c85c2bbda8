"""Answers to prompts that anybody may ask, from a model as it is now."""

from __future__ import annotations

from collections.abc import Sequence

from kifuse.errors import ConfigError
from kifuse.evaluation.generation import greedy_generate
from kifuse.tasks.task import Example
from kifuse.training.engine import Engine


def answer(engine: Engine, texts: Sequence[str | Example], max_new_tokens: int | None) -> list[str]:
    """Answer prompts greedily.

    Args:
        engine: With its model as it is to answer.
        texts: Prompts as they are to be read, or examples of a task.
        max_new_tokens: Longest answer; None: the configuration's.

    Returns:
        One answer for each.

    Raises:
        ConfigError: `texts` is a single text, or `max_new_tokens` below 1.
    """
    if isinstance(texts, str):
        raise ConfigError("generate(): found a text, expected a list of texts.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens: found {max_new_tokens}, expected at least 1, or None.")
    examples = [t if isinstance(t, Example) else Example("", t, "", ("",)) for t in texts]
    with engine.backbone.autocast():
        return greedy_generate(
            engine.model,
            engine.backbone.tokenizer,
            [engine.encoder.prompt(e) for e in examples],
            encoder_decoder=engine.backbone.encoder_decoder,
            max_new_tokens=max_new_tokens or engine.evaluator.max_new_tokens,
            batch_tokens=engine.evaluator.batch_tokens,
        )

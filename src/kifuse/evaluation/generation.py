"""Greedy generation in batches, with the same text as one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from kifuse.errors import ConfigError, DataError
from kifuse.evaluation.attention import grouped_attention
from kifuse.evaluation.decoding import Guesses, decode
from kifuse.evaluation.rows import CausalRows, EncoderDecoderRows, Start
from kifuse.evaluation.session import OtherCacheError, Session, eval_mode


def greedy_generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    encoder_decoder: bool,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    likely: Sequence[Sequence[int]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Continue every prompt greedily, in batches that do not influence each other's rows.

    The text is that of ``model.generate(do_sample=False, num_beams=1)`` on each prompt alone. Prompts are
    batched by length. When all prompts of a decoder-only model start alike (the instruction of a task), the
    keys and values of that start are computed once. Of answers that are likely, several tokens go through the
    model at once, and count where they are what the model says. Precision, and autocast, are the caller's.

    Args:
        model: A transformers model, or a PEFT wrapper of one; its train/eval modes are restored.
        tokenizer: Its tokenizer, for the padding and end ids and for decoding.
        prompts: Token ids, one non-empty list for each prompt.
        encoder_decoder: Whether the prompts go to an encoder.
        max_new_tokens: The most tokens to produce for a prompt.
        batch_tokens: The most prompt tokens in a batch, padding included; a single longer prompt still runs.
        likely: Token ids of answers that are likely, such as a task's labels, without an end token. They
            change how long it takes, and not what comes out.
        progress: Called with (prompts done, prompts in all) after every batch.

    Returns:
        The decoded text for each prompt, in their order, stripped and without special tokens.

    Raises:
        ConfigError: If max_new_tokens or batch_tokens is below 1.
        DataError: If a prompt is empty or does not fit the positions the model has learned.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise ConfigError(f"{name}: found {value}, expected a whole number of at least 1.")
    empty = next((index for index, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise DataError(f"prompt {empty} has no tokens; generation needs at least one token to start from.")
    if not prompts:
        return []
    session = Session.build(model, tokenizer, encoder_decoder, max_new_tokens)
    if session.device.type == "cpu":
        _keep_memory()
    if not encoder_decoder:
        _check_positions(session, prompts)
    with torch.inference_mode(), eval_mode(model), grouped_attention(session.base) as cache_type:
        session = replace(session, cache_type=cache_type)
        try:
            outputs = _run(session, prompts, batch_tokens, likely, progress)
        except OtherCacheError:
            outputs = _run(replace(session, plain=True), prompts, batch_tokens, likely, progress)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in outputs]


def _keep_memory() -> None:
    """Let the C library keep what a layer frees for the next one.

    glibc hands free memory back to the system beyond twice the size of the largest block that it has seen
    freed, 32 MiB at most (mallopt(3), M_MMAP_THRESHOLD); the system then clears it anew in every layer.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _run(
    session: Session,
    prompts: Sequence[list[int]],
    batch_tokens: int,
    likely: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """Generate for all prompts, batch by batch; returns the new ids without their end id."""
    start = None if session.plain or session.encoder_decoder else Start.read(session, prompts)
    guesses = Guesses(likely)

    def generate(batch: list[list[int]]) -> list[list[int]]:
        if session.plain:
            return _generate_plain(session, batch)
        if session.encoder_decoder:
            return decode(session, EncoderDecoderRows(session, batch), guesses)
        return decode(session, CausalRows(session, batch, start), guesses)

    # Without position ids a model may count its positions from the padding, so its rows get none.
    padded = not session.plain and (session.encoder_decoder or "position_ids" in session.accepts)
    outputs: list[list[int]] = [[] for _ in prompts]
    done = 0
    for members in _batches([len(prompt) for prompt in prompts], batch_tokens, ragged=padded):
        for index, ids in zip(members, generate([prompts[index] for index in members]), strict=True):
            outputs[index] = ids
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    return outputs


def _generate_plain(session: Session, batch: list[list[int]]) -> list[list[int]]:
    """Generate with the model's own ``generate``, for prompts of one length, so that nothing is padded."""
    ids = torch.tensor(batch, device=session.device)
    found = session.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=session.max_new,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(session.eos) or None,
        pad_token_id=session.pad,
    )
    rows = found[:, 1 if session.encoder_decoder else ids.shape[1] :].tolist()
    ends = [next((at for at, token in enumerate(row) if token in session.eos), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def _batches(lengths: Sequence[int], budget: int, *, ragged: bool) -> list[list[int]]:
    """Split indices into batches, longest first, each of at most ``budget`` tokens when padded.

    The longest come first so that a lack of memory shows at once. ``ragged=False`` keeps lengths apart.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = bool(batches) and (len(batches[-1]) + 1) * longest <= budget
        if not fits or (not ragged and lengths[index] != longest):
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def _check_positions(session: Session, prompts: Sequence[list[int]]) -> None:
    """Refuse prompts that run past a table of learned positions; rotary models have no such end."""
    config = session.model.config
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or getattr(config, "rope_parameters", None) is not None:
        return
    index = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    needed = len(prompts[index]) + session.max_new - 1
    if needed > limit:
        raise DataError(
            f"prompt {index} has {len(prompts[index])} tokens and {session.max_new} may follow, but the "
            f"model has only {limit} positions; lower data.max_input or evaluation.max_new_tokens."
        )

"""Greedy generation in batches, with the same text as one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from kifuse.answering.decoding import Guesses, decode
from kifuse.answering.fast_linear import quick_products
from kifuse.answering.grouped_attention import grouped_attention
from kifuse.answering.running_batch import CausalRows, EncoderDecoderRows
from kifuse.answering.session import OtherCacheError, Session, eval_mode
from kifuse.answering.shared_starts import Starts, families, stems
from kifuse.errors import ConfigError, DataError
from kifuse.processes import ALONE, Processes


def greedy_generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    encoder_decoder: bool,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    likely: Sequence[Sequence[int]] = (),
    ends: Sequence[Sequence[int]] = (),
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> list[str]:
    """Continue every prompt greedily, in batches that do not influence each other's rows.

    The text is that of ``model.generate(do_sample=False, num_beams=1)`` on each prompt alone. Prompts are
    batched by length. When all prompts of a decoder-only model start alike (the instruction of a task), or
    some of them do (questions about one text), the keys and values of that start are computed once. Several
    tokens of a likely answer go through the model at once, and count where they are the model's own choice.
    The caller sets precision and autocast.

    Args:
        model: A transformers model, or a PEFT wrapper of one; its train/eval modes are restored.
        tokenizer: Its tokenizer, for the padding and end ids and for decoding.
        prompts: Token ids, one non-empty list for each prompt.
        encoder_decoder: Whether the prompts go to an encoder.
        max_new_tokens: The most tokens to produce for a prompt.
        batch_tokens: The most prompt tokens in a batch, padding included; a single longer prompt still runs.
        likely: Token ids of answers that are likely, such as a task's labels, without an end token. They
            change how long generation takes, not the answers.
        ends: Token ids of further markers that end an answer, beside the end tokens of model and tokenizer,
            such as the end-of-turn marker of a chat template.
        progress: Called with (prompts done, prompts in all) after every batch.
        processes: The processes that share the batches. All call this with the same arguments. The batches
            are the same as in one process, so that each is computed in the same way.

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
    session = Session.build(model, tokenizer, encoder_decoder, max_new_tokens, ends)
    if session.device.type == "cpu":
        _keep_memory()
    if not encoder_decoder:
        _check_positions(session, prompts)
    with (
        quick_products(model, prompts),
        torch.inference_mode(),
        eval_mode(model),
        grouped_attention(session.base) as cache_type,
    ):
        session = replace(session, cache_type=cache_type)
        own: dict[int, list[int]] | None
        try:
            own = _run(session, prompts, batch_tokens, likely, progress, processes)
        except OtherCacheError:
            own = None
        parts = processes.gathered(own)
        # a process without a batch of its own has seen no cache
        if any(part is None for part in parts):
            session = replace(session, plain=True)
            parts = processes.gathered(_run(session, prompts, batch_tokens, likely, progress, processes))
    found = {place: ids for part in parts if part is not None for place, ids in part.items()}
    return [tokenizer.decode(found[i], skip_special_tokens=True).strip() for i in range(len(prompts))]


def _keep_memory() -> None:
    """Let the C library keep the memory that a layer frees for the next layer.

    glibc keeps free memory up to twice the size of the largest block freed so far, where a block counts up to
    32 MiB (mallopt(3), M_MMAP_THRESHOLD). It hands the rest back to the system, which then clears it again in
    every layer. Freeing one block of 31 MiB raises that limit.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _run(
    session: Session,
    prompts: Sequence[list[int]],
    batch_tokens: int,
    likely: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None,
    processes: Processes,
) -> dict[int, list[int]]:
    """Generate for this process's batches; returns the new ids by place, without their end id."""
    starts = None if session.plain or session.encoder_decoder else Starts.read(session, prompts)
    family = list(range(len(prompts))) if starts is None else families(prompts, starts.tokens[0])
    guesses = Guesses(likely)

    def generate(members: list[int]) -> dict[int, list[int]]:
        batch = [prompts[place] for place in members]
        if session.plain:
            found = session.generate(batch, do_sample=False)
            return dict(zip(members, map(session.without_end, found), strict=True))
        if session.encoder_decoder:
            rows: CausalRows | EncoderDecoderRows = EncoderDecoderRows(session, batch)
        else:
            members, rows = _read(session, members, prompts, starts, family)
        return dict(zip(members, decode(session, rows, guesses), strict=True))

    # Without position ids a model may count its positions from the padding, so its rows get none.
    padded = not session.plain and (session.encoder_decoder or "position_ids" in session.accepts)
    batches = _batches([len(prompt) for prompt in prompts], batch_tokens, family, ragged=padded)
    mine = processes.shared_out([max(len(prompts[i]) for i in batch) * len(batch) for batch in batches])
    todo = sum(len(batches[place]) for place in mine)
    found: dict[int, list[int]] = {}
    for place in mine:
        found |= generate(batches[place])
        if progress is not None:  # assuming that the others are equally far
            progress(len(found) * len(prompts) // todo, len(prompts))
    return found


def _read(
    session: Session,
    members: list[int],
    prompts: Sequence[list[int]],
    starts: Starts | None,
    family: Sequence[int],
) -> tuple[list[int], CausalRows]:
    """Read a batch's prompts, shared starts once; returns the place of each row's prompt, and the rows."""
    batch = [prompts[place] for place in members]
    if starts is None:
        return members, CausalRows(session, batch, None)
    which = [0] * len(batch)
    shared = stems(batch, [family[place] for place in members], starts.tokens[0])
    if shared is not None:
        starts, which = CausalRows(session, shared[0], starts).as_starts(), shared[1]
    begun = [starts.tokens[one] for one in which]
    order = sorted(range(len(batch)), key=lambda row: begun[row] - len(batch[row]))
    rows = CausalRows(session, [batch[row] for row in order], starts, [which[row] for row in order])
    return [members[row] for row in order], rows


def _batches(lengths: Sequence[int], budget: int, family: Sequence[int], *, ragged: bool) -> list[list[int]]:
    """Split indices into batches, longest first, each of at most ``budget`` tokens when padded.

    The longest come first so that a lack of memory shows at once, and a family, named by its longest member,
    stays together. With ``ragged=False`` a batch has prompts of one length only.
    """
    order = sorted(
        range(len(lengths)),
        key=lambda index: (-lengths[family[index]], family[index], -lengths[index], index),
    )
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        widest = max(longest, lengths[index])
        fits = bool(batches) and (len(batches[-1]) + 1) * widest <= budget
        if not fits or (not ragged and lengths[index] != longest):
            batches.append([])
            widest = lengths[index]
        longest = widest
        batches[-1].append(index)
    return batches


def _check_positions(session: Session, prompts: Sequence[list[int]]) -> None:
    """Refuse prompts that run past a table of learned positions; rotary models have no such limit."""
    config = session.model.config
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or getattr(config, "rope_parameters", None) is not None:
        return
    index = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    needed = len(prompts[index]) + session.max_new - 1
    if needed > limit:
        raise DataError(
            f"prompt {index} has {len(prompts[index])} tokens and {session.max_new} may follow, but the "
            f"model has only {limit} positions. Lower data.max_input or evaluation.max_new_tokens."
        )

"""Greedy generation in batches, with the same text as one prompt at a time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kifuse.errors import ConfigError, DataError

# A shared prefix shorter than this is not worth a forward pass of its own.
_MIN_SHARED_PREFIX = 8
# Rows that have ended are dropped once they are at least this share of the running batch.
_DROP_SHARE = 0.25
# Settings of a generation config that make `generate` more than an argmax, and where they have no effect.
# fmt: off
_SHAPING = (
    "bad_words_ids", "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id",
    "guidance_scale", "min_length", "min_new_tokens", "no_repeat_ngram_size", "remove_invalid_values",
    "repetition_penalty", "sequence_bias", "stop_strings", "suppress_tokens", "watermarking_config",
)
# fmt: on
_NEUTRAL = {"encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "repetition_penalty": 1.0}


class _OtherCacheError(Exception):
    """The model keeps its past in something other than per-row keys and values."""


def greedy_generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    encoder_decoder: bool,
    max_new_tokens: int,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Continue every prompt greedily, in batches that do not influence each other's rows.

    The text is that of ``model.generate(do_sample=False, num_beams=1)`` on each prompt alone. Prompts are
    batched by length. When all prompts of a decoder-only model start alike (the instruction of a task), the
    keys and values of that start are computed once. Precision, and autocast, are the caller's.

    Args:
        model: A transformers model, or a PEFT wrapper of one; its train/eval modes are restored.
        tokenizer: Its tokenizer, for the padding and end ids and for decoding.
        prompts: Token ids, one non-empty list for each prompt.
        encoder_decoder: Whether the prompts go to an encoder.
        max_new_tokens: The most tokens to produce for a prompt.
        batch_tokens: The most prompt tokens in a batch, padding included; a single longer prompt still runs.
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
    session = _Session.build(model, tokenizer, encoder_decoder, max_new_tokens)
    if not encoder_decoder:
        _check_positions(session, prompts)
    with torch.inference_mode(), _eval_mode(model):
        try:
            outputs = _run(session, prompts, batch_tokens, progress)
        except _OtherCacheError:
            outputs = _run(replace(session, plain=True), prompts, batch_tokens, progress)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in outputs]


@dataclass(frozen=True)
class _Session:
    """What stays the same over all batches of one call."""

    model: Any
    encoder_decoder: bool
    accepts: frozenset[str]
    device: torch.device
    pad: int
    eos: tuple[int, ...]
    start: int
    max_new: int
    plain: bool

    @classmethod
    def build(cls, model: Any, tokenizer: Any, encoder_decoder: bool, max_new: int) -> _Session:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = getattr(base, "generation_config", None) or base.config
        eos = _ids(getattr(config, "eos_token_id", None)) + _ids(getattr(tokenizer, "eos_token_id", None))
        pad = next((ids[0] for ids in (_ids(tokenizer.pad_token_id), eos) if ids), 0)
        starts = _ids(getattr(config, "decoder_start_token_id", None))
        starts += _ids(getattr(base.config, "decoder_start_token_id", None))
        starts += (*_ids(getattr(config, "bos_token_id", None)), pad)
        adapter = getattr(model, "active_peft_config", None)
        shaped = any(getattr(config, name, None) not in (None, _NEUTRAL.get(name, 0)) for name in _SHAPING)
        return cls(
            model=model,
            encoder_decoder=encoder_decoder,
            accepts=frozenset(inspect.signature(base.forward).parameters),
            device=next(model.parameters()).device,
            pad=pad,
            eos=tuple(sorted(set(eos))),
            start=starts[0],
            max_new=max_new,
            # Virtual prompt tokens need PEFT's own preparation of the inputs.
            plain=shaped or bool(getattr(adapter, "is_prompt_learning", False)),
        )

    def last_logits(self, **inputs: Tensor | Any) -> tuple[Tensor, Any]:
        """Logits of the last position, (rows, vocabulary), and the whole output."""
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        out = self.model(**inputs, use_cache=True, return_dict=True)
        return out.logits[:, -1], out


def _run(
    session: _Session,
    prompts: Sequence[list[int]],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """Generate for all prompts, batch by batch; returns the new ids without their end id."""
    prefix = None if session.plain or session.encoder_decoder else _SharedPrefix.compute(session, prompts)

    def generate(batch: list[list[int]]) -> list[list[int]]:
        if session.plain:
            return _generate_plain(session, batch)
        if session.encoder_decoder:
            return _decode(session, _EncoderDecoderRows(session, batch))
        return _decode(session, _CausalRows(session, batch, prefix))

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


def _decode(session: _Session, rows: _CausalRows | _EncoderDecoderRows) -> list[list[int]]:
    """Extend all rows until each has ended or has max_new_tokens."""
    logits = rows.logits
    outputs: list[list[int]] = [[] for _ in range(logits.shape[0])]
    running = list(range(len(outputs)))
    ended = [False] * len(outputs)
    for step in range(session.max_new):
        tokens = logits.argmax(dim=-1)
        for row, token in zip(running, tokens.tolist(), strict=True):
            if not ended[row]:
                ended[row] = token in session.eos
                if not ended[row]:
                    outputs[row].append(token)
        alive = [place for place, row in enumerate(running) if not ended[row]]
        if not alive or step + 1 == session.max_new:
            break
        if len(running) - len(alive) >= _DROP_SHARE * len(running):
            index = torch.tensor(alive, device=session.device)
            rows.keep(index)
            tokens = tokens[index]
            running = [running[place] for place in alive]
        logits = rows.extend(tokens)
    return outputs


class _CausalRows:
    """A running batch of a decoder-only model: cached keys and values, mask and next positions."""

    def __init__(self, session: _Session, prompts: Sequence[list[int]], prefix: _SharedPrefix | None) -> None:
        shared = prefix.length if prefix is not None else 0
        rests = [prompt[shared:] for prompt in prompts]
        width = max(len(rest) for rest in rests)
        ids, seen = _pad(rests, session.pad, left=True, device=session.device)
        # Columns: the shared prefix, the left padded rest of the prompts, room for what will be generated.
        self._mask = seen.new_ones(len(rests), shared + width + session.max_new)
        self._mask[:, shared : shared + width] = seen
        self._length = shared + width
        self._session = session
        self._cache = prefix.expand(len(rests)) if prefix is not None else None
        positions = (shared + seen.cumsum(dim=-1) - 1).clamp(min=0)
        self._next = positions[:, -1:] + 1
        self.logits = self._forward(ids, positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": self._mask[:, : self._length]}
        if "position_ids" in self._session.accepts:
            inputs["position_ids"] = positions
        if self._cache is not None:
            inputs["past_key_values"] = self._cache
        logits, out = self._session.last_logits(**inputs)
        self._cache = _row_cache(out)
        return logits

    def extend(self, tokens: Tensor) -> Tensor:
        """Append one token to every row; returns the logits for the next."""
        self._length += 1
        positions = self._next
        self._next = positions + 1
        return self._forward(tokens[:, None], positions)

    def keep(self, index: Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(index)  # pyright: ignore[reportOptionalMemberAccess]
        self._mask, self._next = self._mask[index], self._next[index]


class _EncoderDecoderRows:
    """A running batch of an encoder-decoder model: encoder states, and the decoder's keys and values."""

    def __init__(self, session: _Session, prompts: Sequence[list[int]]) -> None:
        ids, self._mask = _pad(prompts, session.pad, left=False, device=session.device)
        self._session = session
        start = ids.new_full((len(prompts), 1), session.start)
        self.logits, out = session.last_logits(
            input_ids=ids, attention_mask=self._mask, decoder_input_ids=start
        )
        self._states: Tensor = out.encoder_last_hidden_state
        self._cache = _row_cache(out)

    def extend(self, tokens: Tensor) -> Tensor:
        """Append one token to every row; returns the logits for the next."""
        from transformers.modeling_outputs import BaseModelOutput

        logits, out = self._session.last_logits(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),  # pyright: ignore[reportArgumentType]
            attention_mask=self._mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=self._cache,
        )
        self._cache = out.past_key_values
        return logits

    def keep(self, index: Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(index)
        self._mask, self._states = self._mask[index], self._states[index]


@dataclass(frozen=True)
class _SharedPrefix:
    """Keys and values, for one row, of the tokens that all prompts of a call start with."""

    length: int
    cache: Any

    @classmethod
    def compute(cls, session: _Session, prompts: Sequence[list[int]]) -> _SharedPrefix | None:
        """Run the common prefix once; None where there is none or where it could not be used."""
        length = _common_prefix(prompts)
        if len(prompts) < 2 or length < _MIN_SHARED_PREFIX or "position_ids" not in session.accepts:
            return None
        ids = torch.tensor([prompts[0][:length]], device=session.device)
        positions = torch.arange(length, device=session.device)[None]
        _, out = session.last_logits(
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions
        )
        cache = _row_cache(out)
        # The padding comes between prefix and rest: a sliding window would count it as text.
        return cls(length, cache) if all(not layer.is_sliding for layer in cache.layers) else None

    def expand(self, rows: int) -> Any:
        """A cache for that many rows, of views: a cache grows by copying, so the prefix stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache


def _generate_plain(session: _Session, batch: list[list[int]]) -> list[list[int]]:
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


def _common_prefix(prompts: Sequence[list[int]]) -> int:
    """Number of leading tokens all prompts share; every prompt keeps at least one token of its own."""
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    # What the smallest and the largest prompt share, all between them share.
    return next((place for place in range(limit) if low[place] != high[place]), limit)


def _pad(rows: Sequence[list[int]], pad: int, *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, width) and mask (rows, width; 1 where there is text)."""
    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap, ones = [pad] * (width - len(row)), [1] * len(row)
        ids.append(gap + row if left else row + gap)
        mask.append([0] * len(gap) + ones if left else ones + [0] * len(gap))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _row_cache(out: Any) -> Any:
    """The cache of a model output, if it is made of growing keys and values for each row."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        EncoderDecoderCache,
    )

    cache: Any = getattr(out, "past_key_values", None)
    pair = isinstance(cache, EncoderDecoderCache)
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if pair else (cache,)
    for part in parts:
        known = type(part) is DynamicCache and not getattr(part, "offloading", False)
        if not known or any(
            type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in part.layers
        ):
            raise _OtherCacheError
    return cache


def _check_positions(session: _Session, prompts: Sequence[list[int]]) -> None:
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


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


@contextmanager
def _eval_mode(model: Any) -> Any:
    """Put every module in eval mode, and back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

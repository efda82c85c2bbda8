"""What stays the same over all batches of one generation: the model, its special tokens, what it accepts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kifuse.adapters.base import adapter_on

# The most prompt tokens that a CPU reads at once: with more, the activations no longer fit its caches. Up to
# four long prompts (third number) may have more tokens together (second number), because with fewer rows the
# matrix products have too little work. The last number is what one more pass costs, in tokens.
_CPU_TOKENS, _CPU_MOST_TOKENS, _CPU_ROWS, _CPU_PASS = 640, 1440, 4, 80
# Settings of a generation config that make `generate` more than an argmax; `_NEUTRAL`: values without effect.
# fmt: off
_SHAPING = (
    "bad_words_ids", "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id",
    "guidance_scale", "min_length", "min_new_tokens", "no_repeat_ngram_size", "remove_invalid_values",
    "repetition_penalty", "sequence_bias", "stop_strings", "suppress_tokens", "watermarking_config",
)
# fmt: on
_NEUTRAL = {"encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "repetition_penalty": 1.0}


class OtherCacheError(Exception):
    """The model caches something other than keys and values for each row."""


@dataclass(frozen=True)
class Session:
    """What stays the same over all batches of one call."""

    model: Any
    base: Any
    encoder_decoder: bool
    accepts: frozenset[str]
    device: torch.device
    pad: int
    eos: tuple[int, ...]
    start: int
    max_new: int
    plain: bool
    cache_type: torch.dtype | None = None
    ends: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def build(
        cls,
        model: Any,
        tokenizer: Any,
        encoder_decoder: bool,
        max_new: int,
        ends: Sequence[Sequence[int]] = (),
    ) -> Session:
        """Collect what model and tokenizer say; `ends` are further token sequences that end an answer."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = getattr(base, "generation_config", None) or base.config
        eos = _ids(getattr(config, "eos_token_id", None)) + _ids(getattr(tokenizer, "eos_token_id", None))
        eos += tuple(end[0] for end in ends if len(end) == 1)
        pad = next((ids[0] for ids in (_ids(tokenizer.pad_token_id), eos) if ids), 0)
        starts = _ids(getattr(config, "decoder_start_token_id", None))
        starts += _ids(getattr(base.config, "decoder_start_token_id", None))
        starts += (*_ids(getattr(config, "bos_token_id", None)), pad)
        device = next(model.parameters()).device
        adapter, own = getattr(model, "active_peft_config", None), adapter_on(model)
        shaped = any(getattr(config, name, None) not in (None, _NEUTRAL.get(name, 0)) for name in _SHAPING)
        return cls(
            model=model,
            base=base,
            encoder_decoder=encoder_decoder,
            accepts=frozenset(inspect.signature(base.forward).parameters),
            device=device,
            pad=pad,
            eos=tuple(sorted(set(eos))),
            start=starts[0],
            max_new=max_new,
            # With virtual prompt tokens, PEFT itself must prepare the inputs.
            plain=shaped
            or bool(getattr(adapter, "is_prompt_learning", False))
            or bool(own and own.plain_generation),
            ends=tuple(tuple(end) for end in ends if len(end) > 1),
        )

    @property
    def cache_name(self) -> str:
        """What the model's forward pass calls its cache; transformers 5.24 deprecates the older name."""
        return "cache" if "cache" in self.accepts else "past_key_values"

    def pieces(self, lengths: Sequence[int]) -> list[slice]:
        """Split a batch's prompts into pieces that are read together, so that padding and passes cost least.

        Args:
            lengths: Tokens of each prompt, longest first.

        Returns:
            The places of each piece, in order; one piece with all prompts unless the device is a CPU.
        """
        if self.device.type != "cpu":
            return [slice(0, len(lengths))]
        cost, begin = [0.0], [0]  # least cost of so many prompts; where their last piece begins
        for end in range(1, len(lengths) + 1):
            found = []
            for first in range(end - 1, -1, -1):
                tokens = lengths[first] * (end - first)
                if end - first > 1 and not self._fits(end - first, tokens):
                    break
                found.append((cost[first] + tokens + _CPU_PASS, first))
            best, first = min(found)
            cost.append(best)
            begin.append(first)
        ends, end = [], len(lengths)
        while end:
            ends.append(slice(begin[end], end))
            end = begin[end]
        return ends[::-1]

    @staticmethod
    def _fits(rows: int, tokens: int) -> bool:
        return tokens <= _CPU_TOKENS or (rows <= _CPU_ROWS and tokens <= _CPU_MOST_TOKENS)

    def last_logits(self, columns: int, **inputs: Tensor | Any) -> tuple[Tensor, Any]:
        """Logits of the last positions, (rows, columns, vocabulary), and the whole output."""
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = columns
        out = self.model(**inputs, use_cache=True, return_dict=True)
        return out.logits[:, -columns:], out

    def cached(self, **inputs: Tensor) -> Any:
        """Return the output for tokens whose logits nobody needs: the model's head is left out."""
        body = getattr(self.base, "base_model", self.base)
        takes = inspect.signature(body.forward).parameters
        model = body if all(name in takes for name in inputs) else self.model
        return model(**inputs, use_cache=True, return_dict=True)

    def generate(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
        """Let the model's own ``generate`` continue prompts; prompts of different lengths are padded.

        Args:
            prompts: Token ids of each prompt.
            how: Further arguments of ``generate``.

        Returns:
            The new token ids of each prompt, up to and including the tokens that end it.
        """
        width = max(map(len, prompts))
        ids, mask = [], []
        for prompt in prompts:
            filler, there = [self.pad] * (width - len(prompt)), [1] * len(prompt)
            none = [0] * len(filler)
            ids.append([*prompt, *filler] if self.encoder_decoder else [*filler, *prompt])
            mask.append([*there, *none] if self.encoder_decoder else [*none, *there])
        found = self.model.generate(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            max_new_tokens=self.max_new,
            num_beams=1,
            eos_token_id=list(self.eos) or None,
            pad_token_id=self.pad,
            **how,
        )
        rows = found[:, 1 if self.encoder_decoder else width :].tolist()
        return [self._through_end(row) for row in rows]

    def ended(self, answer: list[int]) -> bool:
        """Whether an answer is complete or as long as it may be."""
        return len(answer) >= self.max_new or self._end(answer) > 0

    def without_end(self, answer: list[int]) -> list[int]:
        """An answer without the tokens that end it."""
        return answer[: len(answer) - self._end(answer)]

    def _through_end(self, answer: list[int]) -> list[int]:
        """An answer up to and including the first tokens that end it."""
        ends = (length for length in range(1, len(answer) + 1) if self._end(answer[:length]))
        return answer[: next(ends, len(answer))]

    def _end(self, answer: list[int]) -> int:
        """How many of the last tokens end the answer; 0 if it goes on."""
        if answer[-1] in self.eos:
            return 1
        return next((len(end) for end in self.ends if tuple(answer[-len(end) :]) == end), 0)


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


@contextmanager
def eval_mode(model: Any) -> Any:
    """Put every module in eval mode, and back in the mode it had."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

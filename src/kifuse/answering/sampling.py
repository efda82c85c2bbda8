"""Sampled generation that gives the same texts for the same seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from kifuse.answering.session import Session, eval_mode


class SeededChoice(LogitsProcessor):
    """Turns the greedy choice into sampling: adds Gumbel noise to each row's logits, from the row's own seed.

    The largest of z / T + g, with g = -log(-log u) and u uniform, is a draw from softmax(z / T). So a row's
    answer depends on its own seed, and not on the rows beside it.

    Args:
        seeds: One seed for each row.
        top_k: How many of the likeliest tokens one is drawn from.
        temperature: T, what the logits z are divided by.
        device: The device of the logits.
    """

    def __init__(self, seeds: Sequence[int], top_k: int, temperature: float, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._top_k, self._temperature = top_k, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The noisy logits, `(rows, vocabulary)`; a token outside the top k is ruled out."""
        logits = scores.float() / self._temperature
        least = logits.topk(min(self._top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        noise = torch.empty_like(logits)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        # -log of an exponential draw is Gumbel noise
        return (logits - noise.log()).masked_fill(logits < least, float("-inf"))


def draw(
    session: Session,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    top_k: int,
    temperature: float,
) -> list[list[int]]:
    """Sample a continuation of every prompt, all of them in one batch.

    Args:
        session: The session of the model, which is in eval mode.
        prompts: Token ids of each prompt; prompts of different lengths are padded here.
        seeds: One seed for each prompt.
        top_k: How many of the likeliest tokens one is drawn from.
        temperature: What the logits are divided by.

    Returns:
        The new token ids of each prompt, with the tokens that end it.
    """
    choice = SeededChoice(seeds, top_k, temperature, session.device)
    return session.generate(prompts, do_sample=False, logits_processor=LogitsProcessorList([choice]))


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    encoder_decoder: bool,
    max_new_tokens: int,
    top_k: int,
    temperature: float,
    seed: int,
    batch_tokens: int = 8192,
    ends: Sequence[Sequence[int]] = (),
) -> list[str]:
    """Sample a continuation of every prompt with the model's own `generate`.

    Prompts of one length go through the model together, so that nothing is padded. No other random number
    generator is touched.

    Args:
        model: A transformers model, or a PEFT wrapper of one; its train/eval modes are restored.
        tokenizer: Its tokenizer.
        prompts: Token ids, one non-empty list for each prompt.
        encoder_decoder: Whether the prompts go to an encoder.
        max_new_tokens: The most tokens to produce for a prompt.
        top_k: How many of the likeliest tokens one is drawn from.
        temperature: What the logits are divided by.
        seed: The seed of the draws.
        batch_tokens: The most tokens in a batch, including those to be generated.
        ends: Token ids of further markers that end an answer, beside the end tokens of model and tokenizer.

    Returns:
        The decoded text for each prompt, in their order, stripped and without special tokens.
    """
    lengths: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        lengths[len(prompt)].append(place)
    seeds = [random.Random(f"{seed}:{place}").getrandbits(63) for place in range(len(prompts))]  # noqa: S311
    found: dict[int, list[int]] = {}
    session = Session.build(model, tokenizer, encoder_decoder, max_new_tokens, ends)
    with torch.inference_mode(), eval_mode(model):
        for length, places in lengths.items():
            together = max(1, batch_tokens // (length + max_new_tokens))
            for start in range(0, len(places), together):
                part = places[start : start + together]
                drawn = draw(
                    session,
                    [prompts[place] for place in part],
                    [seeds[place] for place in part],
                    top_k=top_k,
                    temperature=temperature,
                )
                found |= zip(part, map(session.without_end, drawn), strict=True)
    return [tokenizer.decode(found[i], skip_special_tokens=True).strip() for i in range(len(prompts))]

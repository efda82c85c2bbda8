"""Sampled generation: the same texts from the same seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from kifuse.evaluation.session import Session, eval_mode


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

    Prompts that are alike go through the model together, so that nothing is padded. Random numbers of others
    are left as they are.

    Args:
        model: A transformers model, or a PEFT wrapper of one; its train/eval modes are restored.
        tokenizer: Its tokenizer.
        prompts: Token ids, one non-empty list for each prompt.
        encoder_decoder: Whether the prompts go to an encoder.
        max_new_tokens: The most tokens to produce for a prompt.
        top_k: Tokens that one is drawn from.
        temperature: What the logits are divided by.
        seed: Of the draws.
        batch_tokens: The most tokens in a batch, those to come included.
        ends: Token ids of what ends an answer beside the end tokens of model and tokenizer.

    Returns:
        The decoded text for each prompt, in their order, stripped and without special tokens.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        alike[tuple(prompt)].append(place)
    found: dict[int, list[int]] = {}
    session = Session.build(model, tokenizer, encoder_decoder, max_new_tokens, ends)
    devices = [session.device] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), eval_mode(model):
        torch.manual_seed(seed)
        for prompt, places in alike.items():
            together = max(1, batch_tokens // (len(prompt) + max_new_tokens))
            for start in range(0, len(places), together):
                part = places[start : start + together]
                drawn = session.generate(
                    [list(prompt)] * len(part),
                    do_sample=True,
                    top_k=top_k,
                    top_p=1.0,
                    temperature=temperature,
                )
                found |= zip(part, drawn, strict=True)
    return [tokenizer.decode(found[i], skip_special_tokens=True).strip() for i in range(len(prompts))]

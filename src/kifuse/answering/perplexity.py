"""How well a model continues texts: its perplexity, from the loss of every token, without generating."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from kifuse.adapters.base import adapter_on
from kifuse.answering.session import eval_mode
from kifuse.models.loading import Backbone
from kifuse.processes import ALONE, Processes
from kifuse.tasks.collator import IGNORED, Collator
from kifuse.tasks.encoded import Encoded

METRIC = "perplexity"
"""Name of the metric."""

_MOST_LOGITS = 2**26
"""Most logits of a batch, tokens times vocabulary: 256 MiB in float32."""


def losses(
    model: Any,
    backbone: Backbone,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> list[tuple[float, int]]:
    """Compute the loss of every target.

    Args:
        model: The adapted model; its train and eval modes are restored.
        backbone: The backbone that the model was made from.
        encoded: Prompts and targets.
        batch_tokens: Most tokens of a batch, padding included.
        progress: Called with (targets done, targets in all) after every batch.
        processes: The processes that share the batches; all call this with the same arguments.

    Returns:
        For each target the sum of the losses of its tokens (nats), and the number of its tokens.
    """
    adapter = adapter_on(model)
    collate = Collator(
        backbone.tokenizer.pad_token_id,
        encoder_decoder=backbone.encoder_decoder,
        accepts=backbone.accepts - {"logits_to_keep"} | (adapter.reads if adapter else frozenset()),
    )
    found: dict[int, tuple[float, int]] = {}
    vocabulary = int(getattr(model.config, "vocab_size", 1))
    most = max(1, min(batch_tokens, _MOST_LOGITS // vocabulary))
    batches = list(_batches([each.length for each in encoded], most))
    mine = processes.shared_out([encoded[places[0]].length * len(places) for places in batches])
    todo = sum(len(batches[number]) for number in mine)
    with torch.inference_mode(), eval_mode(model), backbone.autocast():
        for places in map(batches.__getitem__, mine):
            batch = {k: v.to(backbone.device) for k, v in collate([encoded[i] for i in places]).items()}
            labels = batch["labels"]
            if backbone.encoder_decoder:
                batch["decoder_input_ids"] = backbone.model.prepare_decoder_input_ids_from_labels(
                    batch.pop("labels")
                )
            else:
                labels = functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORED)
            logits = model(**batch).logits.float()
            each = functional.cross_entropy(
                logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
            )
            counts = (labels != IGNORED).sum(dim=1).tolist()
            for place, total, count in zip(places, each.double().sum(dim=1).tolist(), counts, strict=True):
                found[place] = (total, count)
            if progress is not None:
                progress(len(found) * len(encoded) // todo, len(encoded))
    found = processes.joined(found)
    return [found[place] for place in range(len(encoded))]


def perplexity(parts: Sequence[tuple[float, int]]) -> float:
    """Perplexity over texts: e to the mean loss of all their tokens, 1 or more.

    Args:
        parts: Sum of losses and number of tokens of each text, as `losses` gives them.
    """
    mean = math.fsum(total for total, _ in parts) / max(sum(count for _, count in parts), 1)
    return math.exp(mean) if mean < math.log(1e300) else math.inf


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Group places into batches, longest first; a text that is longer than allowed is alone in its batch."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch

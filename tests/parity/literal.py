"""The training loss and its gradients, written out for one example at a time: no padding, no Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kifuse.driving.batches import MemoryBatches
from kifuse.models.loading import Backbone
from kifuse.tasks.encoding import Encoded
from kifuse.tasks.schedule import training_order

Values = dict[str, Tensor]
Batch = list[Encoded]


def trainable(backbone: Backbone) -> Values:
    """Copy the trainable values, by name."""
    return {n: p.detach().clone() for n, p in backbone.model.named_parameters() if p.requires_grad}


def loss_of(backbone: Backbone) -> Callable[[Values, Batch], Tensor]:
    """Return a function of values and a batch: the mean negative log-likelihood over its target tokens."""
    model = copy.deepcopy(backbone.model).eval()

    def loss(theta: Values, batch: Batch) -> Tensor:
        total, count = torch.zeros(()), 0
        for example in batch:
            text, first = example.input_ids + example.target_ids, len(example.input_ids) - 1
            more = {}
            if backbone.encoder_decoder:
                text, first = example.input_ids, 0
                more = {"labels": torch.tensor([example.target_ids])}
            given = {"input_ids": torch.tensor([text]), **more}
            logits = torch.func.functional_call(model, theta, (), given).logits[0]
            for position, token in enumerate(example.target_ids, start=first):
                total = total - logits[position].log_softmax(-1)[token]
                count += 1
        return total / count

    return loss


def task_batches(examples: Sequence[Encoded], *, epochs: int, seed: int, size: int = 4) -> list[Batch]:
    """Return the batches of a task, one for each optimizer step."""
    lengths = [example.length for example in examples]
    order = training_order(lengths, epochs=epochs, batch_size=size, seed=seed)
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def memory_batches(examples: Sequence[Encoded], count: int, *, seed: int, size: int = 4) -> list[Batch]:
    """Return the first batches that are drawn from the memory."""
    drawn = MemoryBatches(examples, size, seed)
    return [drawn.next() for _ in range(count)]

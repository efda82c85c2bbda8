"""Encoded examples in the order of training, and batches of the memory buffer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from kifuse.adapters.base import Adapter
from kifuse.models.loading import Backbone
from kifuse.tasks.collator import IGNORED, Collator
from kifuse.tasks.encoding import Encoded


@dataclass(frozen=True, slots=True)
class Filler(Encoded):
    """An example that does not count, for a process that would otherwise have no batch."""


class OrderedExamples(Dataset[Encoded]):
    """The examples of a task in the order in which training visits them, over all epochs.

    Args:
        encoded: The examples.
        order: Indices into `encoded`, as from `training_order`.
        multiple: The number of examples is filled up to a multiple of this. All processes need the same
            number of batches; otherwise the data loader would take the first examples again.
    """

    def __init__(self, encoded: Sequence[Encoded], order: Sequence[int], multiple: int = 1) -> None:
        self.encoded = encoded
        self.order = order
        self.length = -(-len(order) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Encoded:
        if index < len(self.order):
            return self.encoded[self.order[index]]
        last = self.encoded[self.order[-1]]
        return Filler(last.input_ids, last.target_ids, last.cut)


class ModelCollator:
    """A collator whose batches a model accepts without labels, so that the loss is computed outside of it.

    Args:
        collator: A collator of `kifuse.tasks`.
        decoder_inputs: An encoder-decoder model's own shift of labels to decoder inputs, or None.
        constants: Further arguments of the forward pass, the same for each batch.
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Encoded]], dict[str, Any]],
        decoder_inputs: Callable[[torch.Tensor], torch.Tensor] | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self.collator = collator
        self.decoder_inputs = decoder_inputs
        self.constants = dict(constants or {})

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        """Make one batch of tensors."""
        batch = {**self.collator(examples), **self.constants}
        for row, example in enumerate(examples):
            if isinstance(example, Filler):
                batch["labels"][row] = IGNORED
        if self.decoder_inputs is not None:
            batch["decoder_input_ids"] = self.decoder_inputs(batch["labels"])
        return batch


class MemoryBatches:
    """An endless, deterministic sequence of batches from the memory buffer.

    Every pass is a fresh permutation, so that each example is replayed equally often; a batch may straddle
    two passes, so that all batches are full (a memory smaller than a batch is one batch).

    Args:
        encoded: The memory's examples.
        batch_size: Global batch size.
        seed: Seed of the permutations.
    """

    def __init__(self, encoded: Sequence[Encoded], batch_size: int, seed: int) -> None:
        self.encoded = encoded
        self.batch_size = min(batch_size, len(encoded))
        self.seed = seed
        self.drawn = 0
        self.tasks: Sequence[str] = ()
        """The task of each example; empty if the tasks are not known."""
        self._pass: tuple[int, list[int]] = (-1, [])

    @property
    def per_pass(self) -> int:
        """Batches in one pass over the memory."""
        return -(-len(self.encoded) // self.batch_size) if self.encoded else 0

    def next(self) -> list[Encoded]:
        """Return the next batch."""
        batch = [self.encoded[self._index(self.drawn + i)] for i in range(self.batch_size)]
        self.drawn += self.batch_size
        return batch

    def _index(self, position: int) -> int:
        number, offset = divmod(position, len(self.encoded))
        if number != self._pass[0]:
            order = list(range(len(self.encoded)))
            random.Random(f"{self.seed}:{number}").shuffle(order)  # noqa: S311
            self._pass = (number, order)
        return self._pass[1][offset]


def collator_of(backbone: Backbone, adapter: Adapter | None = None) -> ModelCollator:
    """Make the collator that builds a model's batches in kifuse's own runs.

    Args:
        backbone: The backbone that the model was made from.
        adapter: The adapter on the model, if there is one.
    """
    plain = Collator(
        backbone.tokenizer.pad_token_id,
        encoder_decoder=backbone.encoder_decoder,
        accepts=backbone.accepts | (adapter.reads if adapter else frozenset()),
    )
    shift = backbone.model.prepare_decoder_input_ids_from_labels if backbone.encoder_decoder else None
    # a training step never looks at the keys and values again
    constants = {"use_cache": False} if "use_cache" in backbone.accepts else {}
    return ModelCollator(plain, shift, constants)

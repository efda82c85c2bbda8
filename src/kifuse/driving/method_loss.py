"""The loss of a method that has one of its own: its terms are scaled as the Trainer scales its loss."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kifuse.driving.taps import Taps
from kifuse.driving.trainer_batch import Inputs, TrainerBatch, joins_examples
from kifuse.driving.under_way import UnderWay
from kifuse.errors import RunError
from kifuse.methods.base import Method
from kifuse.problems import show_value
from kifuse.tasks.collator import IGNORED
from kifuse.tasks.encoded import Encoded


@dataclass(frozen=True)
class _Part:
    """A micro-batch whose loss is being computed.

    Attributes:
        loss: The Trainer's own loss, as it goes into the backward pass.
        factor: Gives the factor that scales a sum over target positions like the Trainer's loss.
    """

    loss: Tensor
    factor: Callable[[], Tensor | float]


class MethodLoss:
    """Puts `Method.loss` in place of a Trainer's loss.

    Args:
        taps: The taps of a Trainer that is about to train.
        method: The method.
        context: The context that the method is given.
    """

    def __init__(self, taps: Taps, method: Method, context: UnderWay) -> None:
        self._trainer, self._method, self._context = taps.trainer, method, context
        self._part: _Part | None = None
        if method.has_loss:
            taps.compute_loss(self._around)

    def _around(
        self,
        compute_loss: Any,
        model: Any,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        items = num_items_in_batch
        if not (torch.is_grad_enabled() and model.training):
            return compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=items)
        # computing the loss may take the labels out of what it is given
        loss, outputs = compute_loss(model, dict(inputs), return_outputs=True, num_items_in_batch=items)
        share = Fraction(1, max(1, getattr(self._trainer, "current_gradient_accumulation_steps", 1)))
        batch = TrainerBatch((inputs,), self._trainer.accelerator.num_processes, share)
        self._part = _Part(loss, lambda: self._factor(inputs, items))
        try:
            total = self._method.loss(self._context, model, batch, outputs)  # type: ignore[arg-type]
        finally:
            self._part = None
        if not isinstance(total, Tensor) or total.ndim:
            found = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else repr(total)
            raise RunError(
                f"{type(self._method).__name__}.loss returned {found}, expected the whole loss as a tensor "
                "with one number: ctx.target_loss and your terms."
            )
        return (total, outputs) if return_outputs else total

    def _factor(self, inputs: Inputs, items: Any) -> Tensor | float:
        trainer = self._trainer
        counted = bool(trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None)
        if not counted or items is None:
            return 1.0 / max(1, int((token_labels(inputs) != IGNORED).sum()))
        # each process divides by the count of all processes; the Trainer then multiplies by their number
        together = trainer.args.average_tokens_across_devices
        return (trainer.accelerator.num_processes if together else 1) / torch.as_tensor(items).clamp(min=1)

    @property
    def of_targets(self) -> Tensor:
        """See `Context.target_loss`."""
        return self._now().loss

    def mean(self, values: Tensor) -> Tensor:
        """See `Context.mean_over_targets`."""
        factor = self._now().factor()
        return values.sum() * (factor.to(values.device) if isinstance(factor, Tensor) else factor)

    def _now(self) -> _Part:
        if self._part is None:
            raise RunError("the loss of a batch is known in Method.loss only.")
        return self._part


def targets_of(inputs: Inputs, outputs: Any, *, aligned: bool) -> list[tuple[Tensor, Tensor]]:
    """The model's logits at the target positions of each row.

    Args:
        inputs: A collated batch with `labels`.
        outputs: Outputs of the model.
        aligned: Whether logits have the positions of their labels; otherwise a position predicts the next.

    Returns:
        For each row float32 logits `(targets, vocabulary)` and the tokens' ids `(targets,)`.

    Raises:
        RunError: There are no labels, or no logits that match them.
    """
    labels, logits = token_labels(inputs), getattr(outputs, "logits", None)
    if logits is None or logits.shape[:-1] != labels.shape:
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise RunError(
            f"the method needs the model's logits at each target token, but found {found} and labels of "
            f"shape {tuple(labels.shape)}."
        )
    kept = target_places(labels, aligned=aligned)
    if not aligned:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counts = kept.sum(dim=1).tolist()
    return list(zip(logits[kept].float().split(counts), labels[kept].split(counts), strict=True))


def token_labels(inputs: Inputs) -> Tensor:
    """The labels of a batch's rows as token ids, `(rows, positions)`.

    Raises:
        RunError: There are no labels, as with preference data, or they are classes or numbers.
    """
    labels = inputs.get("labels")
    if labels is None or labels.ndim < 2 or labels.is_floating_point():
        found = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)} ({labels.dtype})"
        raise RunError(
            f"the method's loss is over target tokens, but the batches have {found}. Use another method, or "
            "a Trainer that trains a language model on tokens."
        )
    return labels


def target_places(labels: Tensor, *, aligned: bool) -> Tensor:
    """Which positions predict a target, `(rows, positions)`; without the last one if `aligned` is False."""
    return (labels if aligned else labels[:, 1:]) != IGNORED


def row_keys(inputs: Inputs) -> list[str]:
    """A key for each row of a batch; a row has the same key in every batch, whatever its padding.

    Raises:
        RunError: The rows are not single examples, for instance because several are packed into one.
    """
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    mask = inputs.get("attention_mask")
    if ids is None or labels is None or joins_examples(inputs) or len(ids) != len(labels):
        raise RunError(
            "the method stores something with each example, but the batches do not have the input_ids and "
            "labels of one example in each row. Turn packing and padding_free off."
        )
    rows = ids.tolist()
    real = [[1] * len(row) for row in rows] if mask is None else mask.tolist()
    keys = []
    for row, kept, targets in zip(rows, real, labels.tolist(), strict=True):
        text = [token for token, there in zip(row, kept, strict=True) if there]
        keys.append(_key(text, [token for token in targets if token != IGNORED]))
    return keys


def key_of(example: Encoded, *, encoder_decoder: bool) -> str:
    """The key that `row_keys` gives to an example's row."""
    text = example.input_ids if encoder_decoder else example.input_ids + example.target_ids
    return _key(text, example.target_ids)


def _key(text: Sequence[int], targets: Sequence[int]) -> str:
    parts = (array("q", [len(text), *text]), array("q", targets))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:24]


def tensors_in(stored: Any) -> Mapping[str, Tensor]:
    """What a method stores with an example.

    Raises:
        RunError: These are not tensors by name.
    """
    if isinstance(stored, Mapping) and all(isinstance(each, Tensor) for each in stored.values()):
        return stored
    raise RunError(
        f"ctx.store was given {show_value(stored)}, expected tensors by name, as in {{'logits': tensor}}."
    )


def stored_with(stored: Mapping[str, Tensor] | None, keys: Sequence[str]) -> list[dict[str, Tensor] | None]:
    """What was stored under each key, by name; None where nothing was."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in (stored or {}).items():
        key, _, own = name.partition(".")
        if key in keys:
            found.setdefault(key, {})[own] = tensor
    return [found.get(key) for key in keys]

"""Tries before the first step what a method asks for only when a task is over, or in a later task.

One row of the training data is collated and run as the method will run it. Nothing changes: weights,
gradients, random numbers and what the Trainer has counted are as before.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer

from kifuse.driving.context import TrainerContext
from kifuse.driving.example_gradients import Probes
from kifuse.driving.model_at_rest import at_rest
from kifuse.driving.trainer_batch import JOINED, TrainerBatch, rows_of
from kifuse.errors import KifuseError, RunError
from kifuse.methods.base import Method
from kifuse.methods.sampled import Sampling

BY_ROW = {
    "examples": "gradients of single examples",
    "squares": "gradients of single examples",
    "kept": "values of single examples",
    "answers": "an answer to each example",
}
"""What a method computes for each example, by need."""


def try_out(context: TrainerContext, dataset: Any) -> None:
    """Refuse a set-up in which a method would fail later, or give wrong results.

    Args:
        context: The context of a training that is about to begin.
        dataset: Its rows. A stream is not tried, because its rows cannot be read again.

    Raises:
        RunError: The method is refused.
    """
    trainer, method = context.trainer, context.method
    if type(trainer)._prepare_inputs is not Trainer._prepare_inputs:
        return _refuse_generating(trainer, method)
    if not method.needs or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return
    device = context.params.tensors[0].device
    try:
        with at_rest(trainer.model, device), _as_counted(trainer):
            rows = [dataset[place] for place in range(min(2, len(dataset)))]
            if not rows:
                return
            _refuse_joined(context, rows)
            _read(context, rows[0])
    except KifuseError as error:
        raise RunError(f"{type(method).__name__}: {error}") from error
    except Exception as error:
        raise RunError(
            f"{type(method).__name__} does not work with this Trainer and this model. A trial with one row "
            f"of the training data failed with {type(error).__name__}: {error}"
        ) from error


def _refuse_generating(trainer: Any, method: Method) -> None:
    """Refuse a method that trains on rows of its own where the Trainer's rows are prompts.

    Raises:
        RunError: The method is refused.
    """
    kind, where = type(method).__name__, type(trainer).__name__
    if method.old_data == "steps" or method.needs & {"examples", "kept", "batch"}:
        raise RunError(
            f"{kind} computes the loss of rows that it chooses, but the rows of {where} are prompts, and "
            "their loss is that of answers generated for a whole batch. Use a method without memory steps "
            "and single examples, such as kif or replay."
        )
    if method.has_loss:
        raise RunError(
            f"{kind} adds a loss term that needs the model's outputs, which {where} does not return. Use a "
            "method without such a term, such as kif or replay."
        )


def _refuse_joined(context: TrainerContext, rows: list[Any]) -> None:
    """Refuse a method that takes a row for an example where rows or batches join several.

    Raises:
        RunError: The method is refused.
    """
    args, needs = context.trainer.args, context.method.needs
    what = next((BY_ROW[need] for need in BY_ROW if need in needs), None)
    if what and (getattr(args, "packing", False) or any(_texts_in(row) > 1 for row in rows)):
        raise RunError(
            f"it needs {what}, but rows of the training data are packed from several texts. Turn packing off."
        )
    if (
        not needs & {"squares", "kept", "batch", "answers"}
        or args.per_device_train_batch_size == 1
        or len(rows) == 1
    ):
        return
    if rows_of(context.collate(rows)) < len(rows):
        raise RunError(f"it needs {what or 'parts of a batch by rows'}, but {JOINED}")


def _texts_in(row: Any) -> int:
    """How many texts TRL says that a row was packed from."""
    lengths = row.get("seq_lengths") if isinstance(row, Mapping) else None
    return 1 if lengths is None else len(lengths)


def _read(context: TrainerContext, row: Any) -> None:
    """Run a row in each way that the method asks for."""
    needs = context.method.needs
    if "examples" in needs:
        Probes(context.trainer, context.shards, [row], context.collate).try_one()
    if not needs & {"batch", "kept", "before task", "answers", "layers"}:
        return
    inputs = context.trainer._prepare_inputs(context.collate([row]))
    batch = TrainerBatch((inputs,), passes=Fraction(0))
    if "batch" in needs:
        twice = "curvature" in needs
        at = [p.detach().clone().requires_grad_() for p in context.params.tensors]
        try:
            gradient = context.gradient(batch, at=at, create_graph=twice)
            if twice:
                size = torch.stack([each.square().sum() for each in gradient]).sum()
                torch.autograd.grad(size, at, allow_unused=True)
        except RuntimeError as error:
            if not twice:
                raise
            raise RunError(
                f"second_order: the loss of {type(context.trainer).__name__} cannot be differentiated twice "
                f"({error}). Use second_order: false."
            ) from error
    if needs & {"kept", "before task"}:
        with torch.no_grad():
            model, own = context.trainer.model, dict(inputs)
            _, outputs = context.trainer.compute_loss(model, own, return_outputs=True)
        context.targets(batch, outputs)
        context.targets(batch, context.forward(batch))
    if needs >= {"layers", "examples"}:
        with context.watch(lambda inputs, outputs: outputs.sum(0)):
            context.forward(batch)
    if "kept" in needs:
        context.stored(batch)
    if "answers" in needs:
        context.sampled(batch, Sampling(), 1)


@contextlib.contextmanager
def _as_counted(trainer: Any) -> Iterator[None]:
    """Restore, after the block, the numbers that a Trainer and its loss function have gathered."""
    holders = [vars(each) for each in (trainer, trainer.compute_loss_func) if hasattr(each, "__dict__")]
    before = [{key: copy.deepcopy(value) for key, value in own.items() if _numbers(value)} for own in holders]
    try:
        yield
    finally:
        for own, kept in zip(holders, before, strict=True):
            for key in [key for key, value in own.items() if _numbers(value) and key not in kept]:
                del own[key]
            own.update({key: value for key, value in kept.items() if own.get(key) != value})


def _numbers(value: Any) -> bool:
    """Whether a value is made of numbers alone."""
    if isinstance(value, Mapping):
        return all(map(_numbers, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_numbers, value))
    return isinstance(value, (int, float))

"""Gradients of single examples of the current task, for a method that looks back on it at its end.

An example's log-likelihood is that of its gold target, log p(y | x) = sum_t log p(y_t | x, y_<t), summed over
the target's tokens: a mean would give long answers a tiny gradient. Its gold logit is sum_t z_t[y_t]; a mean
over t would give the same direction. Dropout is off. Examples are taken by number, not from the Trainer's
batches, so that nothing depends on how those are made up: where a collator makes one row of a batch
(padding-free), each example is a batch of its own.

Weights, gradients, modes of modules and random numbers stay as they are.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import IterableDataset

from kifuse.driving.model_at_rest import at_rest
from kifuse.driving.shards import Shards
from kifuse.driving.trainer_batch import rows_of
from kifuse.errors import RunError
from kifuse.knowledge.per_example import SquaredGradients
from kifuse.methods.base import Parameters
from kifuse.models.heads import is_aligned
from kifuse.tasks.collator import IGNORED
from kifuse.tasks.encoding import Encoded

LEAST_SCALE = 2.0**-24
"""An fp16 gradient that overflows even with its loss scaled by this is broken."""

_log = logging.getLogger(__name__)


class Probes:
    """Gradients of single examples under a Trainer, after the last step of a task.

    Args:
        trainer: The Trainer; its model, device and precision are used.
        shards: The trainable parameters.
        examples: The current task's training examples, by number.
        collate: Makes a batch of them that the model takes, with `labels`.

    With several processes, each takes its share, and all come to the same result. If the model is in pieces,
    each takes all examples, in the same batches: only together can they put a layer together.
    """

    def __init__(
        self, trainer: Any, shards: Shards, examples: Sequence[Any], collate: Callable[[list[Any]], Any]
    ) -> None:
        self.trainer, self.shards, self.examples, self.collate = trainer, shards, examples, collate
        self.params = shards.params
        self._model: nn.Module = trainer.model
        accelerator = trainer.accelerator
        self._shares = 1 if shards.together else accelerator.num_processes
        """Into how many shares the examples are divided; this process takes one of them."""
        self._share = accelerator.process_index % self._shares
        self.skipped = 0
        """How many examples had a gradient that was not finite, in the last call."""

    def chosen(self, count: int | None) -> list[int]:
        """The numbers of the examples that are looked at, drawn with the run's seed.

        Raises:
            RunError: There are no examples.
        """
        if not self.examples:
            raise RunError("the task has no training examples to take gradients of.")
        return drawn(len(self.examples), count, self.trainer.args.seed)

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """See `Context.squared_gradients`.

        It takes one backward pass for each batch if all trained layers are linear ones, otherwise one for
        each example. An example whose gradient is not finite is left out, with a warning.

        Raises:
            RunError: There is no finite gradient, or the batches hold no targets.
        """
        accelerator, numbers = self.trainer.accelerator, self.chosen(count)
        mine = numbers[self._share :: self._shares]
        # examples of similar length share a batch
        mine.sort(key=lambda number: (_length(self.examples[number]), number))
        total = torch.zeros(self.params.count, device=self.params.tensors[0].device)
        with at_rest(self._model, total.device), self.shards.holding(self._model):
            seen = self._add_squares(mine, total)
        sums = torch.cat([total, torch.tensor([seen], dtype=total.dtype, device=total.device)])
        if accelerator.num_processes > 1:
            # where each has taken all examples too, so that all go on with equal bits
            torch.distributed.all_reduce(sums)
        found = round(float(sums[-1]))
        taken = found * self._shares // accelerator.num_processes
        self._tell(len(numbers) - taken, len(numbers))
        return self._split(sums[:-1].div_(found))

    def _add_squares(self, numbers: list[int], total: Tensor) -> int:
        """Add sum_j g_j^2 over some examples; returns how many were finite."""
        hooks = self._hooks()
        size = self.trainer.args.per_device_train_batch_size
        if hooks is None or any(getattr(m, "gradient_checkpointing", False) for m in self._model.modules()):
            # nothing is recomputed in eval mode, so that a batch would need more memory than in training
            size = 1
        parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        try:
            return sum(self._add_batch(part, hooks, total) for part in parts)
        finally:
            if hooks is not None:
                hooks.remove()

    def _hooks(self) -> SquaredGradients | None:
        """Hooks that tell a batch's examples apart; None where its layers do not allow that."""
        if self.trainer.args.torch_compile:
            return None
        try:
            return SquaredGradients(self._model, self.shards.own.tensors, self.params.shapes)
        except ValueError:
            return None

    def _add_batch(self, numbers: list[int], hooks: SquaredGradients | None, total: Tensor) -> int:
        """Add the squares of a batch's examples; returns how many of them were finite."""
        squares = self._squares(numbers, hooks)
        if squares is not None and self._agreed(torch.isfinite(squares).all()):
            total += squares
            return len(numbers)
        if len(numbers) == 1:
            return 0
        # one broken example must not cost the others of its batch
        return sum(self._add_batch([number], hooks, total) for number in numbers)

    def _squares(self, numbers: list[int], hooks: SquaredGradients | None) -> Tensor | None:
        """The sum over a batch's examples of g_j^2 as one vector; None if they cannot be told apart."""
        inputs = self.collate([self.examples[number] for number in numbers])
        if rows_of(inputs) != len(numbers):
            hooks = None  # the hooks take a row for an example
            if len(numbers) > 1:
                return None
        scale, grads = self._gradients(inputs, _log_likelihood, hooks)
        if hooks is not None and self._tells_apart(hooks, grads):
            return hooks.flat / scale**2
        return _flat(grads, self.params).div_(scale).square_() if len(numbers) == 1 else None

    def _agreed(self, fine: Tensor) -> bool:
        """Whether it is so on every process that takes the same examples: they must go on alike."""
        if self.shards.together:
            worst = fine.to(torch.float32)
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
            fine = worst
        return bool(fine)

    def _tells_apart(self, hooks: SquaredGradients, grads: Sequence[Tensor | None]) -> bool:
        """Whether the hooks saw every gradient as one of the batch's rows."""
        try:
            hooks.sums(grads)
        except ValueError:
            return False
        return True

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """See `Context.logit_gradients`; an example whose gradient is not finite is left out, with a warning.

        Raises:
            RunError: There is no finite gradient, or the batches hold no targets.
        """
        numbers, found = self.chosen(count), 0
        for start in range(0, len(numbers), self._shares):
            at_once = numbers[start : start + self._shares]
            with (
                at_rest(self._model, self.params.tensors[0].device),
                self.shards.holding(self._model),
            ):
                # a process without an example of its own takes another one's, so that all of them gather
                mine = self.examples[at_once[min(self._share, len(at_once) - 1)]]
                scale, grads = self._gradients(self.collate([mine]), _gold_logits)
            own = _flat(grads, self.params).div_(scale)
            gathered = [own]
            if self._shares > 1:
                gathered = [torch.empty_like(own) for _ in range(self._shares)]
                torch.distributed.all_gather(gathered, own)
            for gradient in gathered[: len(at_once)]:
                if bool(torch.isfinite(gradient).all()):
                    found += 1
                    yield gradient
        self._tell(len(numbers) - found, len(numbers))

    def try_one(self) -> None:
        """Compute the gradient of the first example, and drop it.

        Raises:
            RunError: The batches hold no targets, or the model's logits do not fit them.
        """
        inputs = self.collate([self.examples[0]])
        if not isinstance(inputs, Mapping):
            raise RunError(f"a batch is a {type(inputs).__name__}, expected tensors by name.")
        self._gradients(inputs, _log_likelihood)

    def _gradients(
        self,
        inputs: Mapping[str, Any],
        of: Callable[[Tensor, Tensor], Tensor],
        hooks: SquaredGradients | None = None,
    ) -> tuple[float, list[Tensor | None]]:
        """The gradient of a sum over a batch's target tokens, times a scale that keeps it finite in fp16."""
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        while True:
            if hooks is not None:
                hooks.clear()
            with torch.enable_grad():
                value = of(*self._targets(inputs))
                grads = self.shards.gradients(value * scale)
            overflowed = any(g is not None and not bool(torch.isfinite(g).all()) for g in grads)
            if scaler is None or scale <= LEAST_SCALE or not overflowed:
                return scale, grads
            scale /= 4.0

    def _targets(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Run the model: float32 logits `(target tokens, vocabulary)`, and the tokens' ids.

        Raises:
            RunError: The batch has no labels, or the model gives no logits that fit them.
        """
        model, inputs = self._model, dict(self.trainer._prepare_inputs(inputs))
        labels = inputs.get("labels")
        if labels is None or labels.is_floating_point():
            raise RunError(
                "gradients of single examples need targets, but the batches have no 'labels' with token or "
                "class ids."
            )
        encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if not encoder_decoder or "decoder_input_ids" in inputs:
            inputs.pop("labels")  # no loss is asked for
        inputs.pop("num_items_in_batch", None)
        logits = getattr(model(**inputs), "logits", None)
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        wanted = tuple(labels.shape)
        if logits is not None and labels.ndim > 1 and not is_aligned(model):
            # decoder-only: a position predicts the next token
            logits, labels = logits[:, :-1], labels[:, 1:]
        if logits is None or logits.shape[:-1] != labels.shape:
            raise RunError(
                f"gradients of single examples need one logit vector for each label {wanted}, but the "
                f"model gives {found}."
            )
        kept = labels != IGNORED
        return logits[kept].float(), labels[kept]

    def _split(self, flat: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.params.tensors]
        return [piece.view(p.shape) for piece, p in zip(flat.split(sizes), self.params.tensors, strict=True)]

    def _tell(self, skipped: int, of: int) -> None:
        self.skipped = skipped
        if skipped == of:
            raise RunError(
                f"none of the {of} examples has a finite gradient: the weights hold NaN or infinity, or the "
                "model overflows in this precision."
            )
        if skipped:
            _log.warning("%d of %d examples left out: their gradients are not finite", skipped, of)


def examples_of(loader: Any) -> Sequence[Any]:
    """The rows of a data loader's data set, by number.

    Raises:
        RunError: It is a stream, whose rows cannot be read again.
    """
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise RunError(
            "the training data is a stream, but the method looks at examples of the task again after "
            "training. Use a data set with a length."
        )
    return dataset  # type: ignore[return-value]


def _log_likelihood(logits: Tensor, gold: Tensor) -> Tensor:
    """Sum of log p over target tokens: logits (tokens, vocabulary), gold (tokens,)."""
    return -functional.cross_entropy(logits, gold, reduction="sum")


def _gold_logits(logits: Tensor, gold: Tensor) -> Tensor:
    """Sum of the gold tokens' logits."""
    return logits.gather(-1, gold[:, None]).sum()


def _flat(grads: Sequence[Tensor | None], params: Parameters) -> Tensor:
    """All gradients as one float32 vector, 0 where there is none."""
    device = params.tensors[0].device
    parts = [
        torch.zeros(p.numel(), device=device) if g is None else g.detach().to(device, torch.float32).flatten()
        for g, p in zip(grads, params.tensors, strict=True)
    ]
    return torch.cat(parts)


def drawn(examples: int, count: int | None, seed: int) -> list[int]:
    """Draw the numbers of `count` examples with the run's seed, in order; all numbers if `count` is None."""
    if count is None or count >= examples:
        return list(range(examples))
    return sorted(random.Random(f"{seed}:probe").sample(range(examples), count))  # noqa: S311


def _length(example: Any) -> int:
    """Number of tokens, as far as an example tells."""
    if isinstance(example, Encoded):
        return example.length
    return len(example["input_ids"]) if isinstance(example, Mapping) and "input_ids" in example else 0

"""Answers that the model samples while it trains, in place of a batch's own answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from kifuse.answering.sampling import draw
from kifuse.answering.session import Session
from kifuse.driving.method_loss import row_keys, token_labels
from kifuse.driving.model_at_rest import at_rest
from kifuse.driving.trainer_batch import Inputs, TrainerBatch
from kifuse.errors import RunError
from kifuse.methods.sampled import Sampling
from kifuse.tasks.collator import IGNORED, Collator
from kifuse.tasks.encoded import Encoded


class OnPolicy:
    """Samples answers to the questions of a Trainer's batches.

    Args:
        trainer: The Trainer.
        ends: Token ids of further markers that end an answer, beside the end tokens of model and tokenizer.
        tokenizer: The model's tokenizer; None for the Trainer's.
    """

    def __init__(self, trainer: Any, ends: Sequence[Sequence[int]] = (), tokenizer: Any = None) -> None:
        self._trainer, self._ends = trainer, ends
        self._tokenizer = tokenizer or getattr(trainer, "processing_class", None)

    def check(self) -> None:
        """Make sure that answers can be sampled at all.

        Raises:
            RunError: Nothing says what ends an answer.
        """
        if getattr(self._tokenizer, "decode", None) is None:
            raise RunError(
                "the model samples answers for this method, which needs the tokenizer's end token. Give "
                "the Trainer its tokenizer: Trainer(..., processing_class=tokenizer)."
            )

    def sampled(self, batch: TrainerBatch, sampling: Sampling, most: int, moment: str) -> TrainerBatch:
        """See `Context.sampled`.

        Args:
            batch: The batch.
            sampling: How tokens are drawn.
            most: The most tokens of an answer.
            moment: A text that the draws depend on, beside the seed and the questions.

        Raises:
            RunError: Rows are not examples, or have no question or no label.
        """
        inputs, trainer = batch.only_part, self._trainer
        model = trainer.model
        two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
        prompts = prompts_of(inputs, encoder_decoder=two_sided)
        keys = [key for key, there in zip(row_keys(inputs), labelled(inputs), strict=True) if there]
        # a text as seed gives the same numbers on every machine
        seeds = [random.Random(f"{trainer.args.seed}:{moment}:{key}").getrandbits(63) for key in keys]  # noqa: S311
        with at_rest(model, inputs["input_ids"].device), torch.no_grad():
            session = Session.build(model, self._tokenizer, two_sided, most, self._ends)
            answers = draw(session, prompts, seeds, top_k=sampling.top_k, temperature=sampling.temperature)
        return self._of(batch, prompts, answers)

    def asked_otherwise(self, batch: TrainerBatch, prompts: Sequence[Sequence[int]]) -> TrainerBatch:
        """See `Context.asked_otherwise`."""
        answers = [
            [token for token in row if token != IGNORED] for row in token_labels(batch.only_part).tolist()
        ]
        return self._of(batch, prompts, answers)

    def _of(
        self, batch: TrainerBatch, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> TrainerBatch:
        """A batch of questions and answers, in the form of another batch."""
        form, model = batch.only_part, self._trainer.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
        collate = Collator(getattr(base.config, "pad_token_id", None) or 0, two_sided, form.keys())
        rows = [Encoded(list(q), list(a), False) for q, a in zip(prompts, answers, strict=True)]
        inputs = collate(rows)
        if "decoder_input_ids" in form:
            inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(inputs["labels"])
        if "use_cache" in form:
            inputs["use_cache"] = form["use_cache"]
        return TrainerBatch((self._trainer._prepare_inputs(inputs),), batch.processes, batch.passes)


def labelled(inputs: Inputs) -> list[bool]:
    """Whether each row has a label; rows that only fill up a process's share have none."""
    return (token_labels(inputs) != IGNORED).any(dim=1).tolist()


def prompts_of(inputs: Inputs, *, encoder_decoder: bool) -> list[list[int]]:
    """The prompt of each row with a label, as token ids: what the encoder reads, or what is before the label.

    Args:
        inputs: A collated batch with `labels`, which may be cut to the last columns.
        encoder_decoder: Whether the model has an encoder.

    Raises:
        RunError: There is nothing before the first label of a row.
    """
    ids, labels, mask = inputs["input_ids"], token_labels(inputs), inputs.get("attention_mask")
    there = torch.ones_like(ids) if mask is None else mask
    found = []
    for row, real, targets in zip(ids.tolist(), there.tolist(), labels.tolist(), strict=True):
        first = next((place for place, token in enumerate(targets) if token != IGNORED), None)
        if first is None:
            continue
        until = len(row) if encoder_decoder else first + len(row) - len(targets)
        asked = [token for token, kept in zip(row[:until], real[:until], strict=True) if kept]
        if not asked:
            raise RunError("the method samples an answer to each row, but a row of the batch has no prompt.")
        found.append(asked)
    return found

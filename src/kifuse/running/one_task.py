"""One Trainer for one task: arguments, data order, callbacks, and what the training cost."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from kifuse.adapters.base import adapter_on
from kifuse.config import TrainingConfig
from kifuse.driving.batches import MemoryBatches, OrderedExamples, collator_of
from kifuse.driving.callback import MethodCallback
from kifuse.driving.gradient_checkpointing import recomputing, stop_recomputing
from kifuse.driving.method_loss import key_of
from kifuse.driving.target_loss import TargetLoss
from kifuse.driving.zero import hold_engine, let_go_of_engine
from kifuse.errors import RunError
from kifuse.methods.base import Method
from kifuse.models.loading import Backbone
from kifuse.running.importance_probe import END, ImportanceProbe
from kifuse.running.mid_task_checkpoint import Middle, MiddleKeeper, identity_of
from kifuse.streams import own_steps
from kifuse.tasks.encoding import Encoded
from kifuse.tasks.on_disk import joined
from kifuse.tasks.schedule import training_order

StepListener = Callable[[int, int, float | None, int], None]
"""Called with (steps taken, steps in all, loss or None, passes taken in all)."""


@dataclass
class TaskTraining:
    """What came of the training on one task.

    Attributes:
        steps: Optimizer steps on the task's own batches.
        taken: How many of these steps changed weights: their loss and gradients were finite.
        examples_seen: Examples of the current task that went through a step, repeats counted.
        replayed: Examples of earlier tasks that went through a step: of the memory buffer, mixed in or in
            memory steps, and those that `Method.training_examples` has added.
        extra_passes: Forward and backward passes beyond one per step.
        seconds: Wall time of `trainer.train()`.
        losses: (step, training loss) pairs.
        rates: (step, learning rate) pairs.
        events: Entries that the method noted.
        per_tensor: What the method measured of each trainable tensor: `names`, `sizes`, and `series` by name.
    """

    steps: int
    taken: int
    examples_seen: int
    replayed: int
    extra_passes: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)
    rates: list[tuple[int, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    per_tensor: dict[str, Any] = field(default_factory=dict)


class _Steps(TrainerCallback):
    """Tells a listener how far training is."""

    def __init__(self, listener: StepListener, driver: MethodCallback) -> None:
        self.listener, self.driver = listener, driver

    def _tell(self, state: Any, loss: float | None) -> None:
        extra = self.driver.context.extra_passes if self.driver.context else 0
        self.listener(state.global_step, state.max_steps, loss, state.global_step + extra)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state, None)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self._tell(state, float(logs["loss"]))


def train_task(
    model: Any,
    backbone: Backbone,
    method: Method,
    settings: TrainingConfig,
    *,
    index: int,
    name: str,
    current: Sequence[Encoded],
    mixed: Sequence[Encoded] = (),
    memory: Sequence[Encoded] = (),
    kept: Sequence[Encoded] = (),
    folder: Path,
    listener: StepListener = lambda *_: None,
    heard: Callable[[dict[str, Any]], None] = lambda _: None,
    callbacks: Sequence[TrainerCallback] = (),
    middle: Middle | None = None,
    ends: Sequence[Sequence[int]] = (),
    probe: ImportanceProbe | None = None,
) -> TaskTraining:
    """Train a model on one task with a fresh Trainer and a fresh optimizer.

    Args:
        model: The adapted model, trained in place.
        backbone: The backbone that the model was made from.
        method: The method, whose hooks are called.
        settings: Rate, epochs, batch size and so on.
        index: 0-based position in the stream.
        name: The task's name.
        current: Examples of the task.
        mixed: Memory examples that join every pass (replay).
        memory: Memory examples for steps of their own.
        kept: Examples of the task that the memory will keep.
        folder: The Trainer's output folder.
        listener: Called after each step.
        heard: Called with each entry that the method adds to the record.
        callbacks: More callbacks of the Trainer, which come last.
        middle: Where checkpoints in the middle of the task are written, and training goes on from; None for
            nowhere.
        ends: Token ids of further markers that end an answer, beside the end tokens of model and tokenizer.
        probe: Measures the importance of other tasks meanwhile.

    Raises:
        RunError: The batch size cannot be split over processes and accumulation.
    """
    # each task has its own seed, within the range that every generator takes
    seed = (settings.seed * 1000 + index) % 2**32
    set_seed(seed)
    examples = joined(current, mixed)
    order = training_order(
        array("q", (each.length for each in examples)),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=seed,
    )
    batches = MemoryBatches(memory, settings.batch_size, seed) if memory else None
    driver = MethodCallback(
        method,
        index=index,
        name=name,
        memory=batches,
        max_bad_steps=settings.max_bad_steps,
        examples=current,
        kept=kept,
    )
    steps = own_steps(len(examples), settings.epochs, settings.batch_size)
    driver.heard = heard
    driver.tokenizer, driver.ends = backbone.tokenizer, ends
    if probe is not None:
        probe.driver = driver
    arguments = training_arguments(settings, backbone, folder, seed, steps)
    keeper = None
    if middle is not None and arguments.deepspeed_plugin is None:
        identity = identity_of(driver, examples, steps, seed, arguments.world_size)
        keeper = MiddleKeeper(driver, middle, identity, middle.read(identity))
    done = keeper.done if keeper else 0
    if keeper and done:
        arguments.max_steps = steps
        keeper.middle.say(f"{name}: going on after step {done} of {steps}")
    together = arguments.world_size * arguments.per_device_train_batch_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=OrderedExamples(
            examples,
            order[done * settings.batch_size :],
            multiple=together if arguments.world_size > 1 else 1,
        ),
        data_collator=collator_of(backbone, adapter_on(model)),
        compute_loss_func=TargetLoss(shift=not backbone.encoder_decoder),
        callbacks=[
            *([keeper] if keeper else []),
            driver,
            *([probe] if probe else []),
            _Steps(listener, driver),
            *callbacks,
        ],
    )
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    driver.attach(trainer)
    let_go_of_engine(model)
    if keeper:
        keeper.trainer = trainer
    start = time.monotonic()
    try:
        trainer.train()
    finally:
        hold_engine(trainer)
        if settings.gradient_checkpointing:
            stop_recomputing(model)
    seconds = keeper.total_seconds() if keeper else time.monotonic() - start
    context = driver.context
    if context is None:
        raise RunError(f"task {name!r}: training ended before it began.")
    if probe is not None:
        probe.measure(context, END)
    reminded = bool(method.reminders)
    from_memory = sum(
        i >= len(current) or (reminded and _replays(method, examples[i], backbone)) for i in order
    )
    return TaskTraining(
        steps=trainer.state.global_step,
        taken=driver.guard.taken,
        examples_seen=len(order) - from_memory,
        replayed=from_memory + context.replayed,
        extra_passes=context.extra_passes,
        seconds=seconds,
        losses=driver.losses,
        rates=driver.rates,
        events=context.events,
        per_tensor={
            "names": list(context.params.names),
            "sizes": [p.numel() for p in context.params.tensors],
            "series": context.measured,
        }
        if context.measured
        else {},
    )


def _replays(method: Method, example: Encoded, backbone: Backbone) -> bool:
    """Whether a method has added an example as a reminder of an earlier task; see `Method.reminders`."""
    key = key_of(example, encoder_decoder=backbone.encoder_decoder)
    return method.noted.rows.get(key) in method.reminders


def training_arguments(
    settings: TrainingConfig, backbone: Backbone, folder: Path, seed: int, steps: int, **more: Any
) -> TrainingArguments:
    """The Trainer's arguments; the data order is already laid out, so one 'epoch' is the whole training.

    Raises:
        RunError: The batch size cannot be split over processes and accumulation.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        bf16=backbone.precision == "bf16",
        fp16=backbone.precision == "fp16",
        use_cpu=backbone.device.type == "cpu",
        seed=seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        save_strategy="no",
        logging_steps=max(1, steps // 25),
        # kifuse.running.tracking handles these, for all Trainers of a run together
        report_to=[],
        disable_tqdm=True,
        **recomputing(settings.gradient_checkpointing),
        **more,
    )
    shares = arguments.world_size * settings.accumulation
    if settings.batch_size % shares:
        raise RunError(
            f"training.batch_size: {settings.batch_size} cannot be split over "
            f"{arguments.world_size} process(es) x training.accumulation {settings.accumulation}; "
            f"use a multiple of {shares}."
        )
    arguments.per_device_train_batch_size = settings.batch_size // shares
    return arguments

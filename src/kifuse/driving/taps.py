"""Hooks into what a Trainer does between its events, and a list of the undocumented names in use.

A Trainer has no event for a micro-batch, for its loss, or for the moment between backward pass and clipping.
So `Taps` wraps a function around some of its methods, and `release` takes it off again. Only this module does
so.

`RELIED_ON` lists every name of transformers, accelerate, PEFT, TRL and lm_eval that is private, or public and
not documented, and on which any part of kifuse relies. A test looks for each of them in the installed
release, so that the test fails if a release moves one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Around = Callable[..., Any]
"""Called as `around(original, *args, **kwargs)` in place of a method; its result is the method's result."""


class Taps:
    """Functions around methods of a Trainer and its accelerator, until `release`.

    Args:
        trainer: A Trainer that is about to train.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._open = True
        self._wrapped: list[tuple[Any, str, Any, Any]] = []

    def training_step(self, around: Around) -> None:
        """Be called around the forward and backward pass of each micro-batch."""
        self._wrap(self.trainer, "training_step", around)

    def compute_loss(self, around: Around) -> None:
        """Be called around the forward pass and the loss of each micro-batch, in evaluation too."""
        self._wrap(self.trainer, "compute_loss", around)

    def train(self, around: Around) -> None:
        """Be called around the whole training."""
        self._wrap(self.trainer, "train", around)

    def get_train_dataloader(self, around: Around) -> None:
        """Be called around the call that makes the loader of the training data."""
        self._wrap(self.trainer, "get_train_dataloader", around)

    def save(self, around: Around) -> None:
        """Be called around the call that writes the model and its files, also for checkpoints."""
        self._wrap(self.trainer, "_save", around)

    def load_from_checkpoint(self, around: Around) -> None:
        """Be called around the call that reads a checkpoint's model."""
        self._wrap(self.trainer, "_load_from_checkpoint", around)

    def clip_grad_norm(self, around: Around) -> None:
        """Be called around clipping, when the gradients are complete and unscaled."""
        self._wrap(self.trainer.accelerator, "clip_grad_norm_", around)

    def engine_backward(self, around: Around) -> None:
        """Be called around a backward pass of DeepSpeed's engine, and the step that accelerate adds to it."""
        self._wrap(self.trainer.accelerator.deepspeed_engine_wrapped, "backward", around)

    def optimizer_step(self, around: Around) -> None:
        """Be called around the step of the Trainer's optimizer."""
        self._wrap(self.trainer.optimizer, "step", around)

    def _wrap(self, owner: Any, name: str, around: Around) -> None:
        original, before = getattr(owner, name), vars(owner).get(name)

        def tap(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs) if self._open else original(*args, **kwargs)

        setattr(owner, name, tap)
        self._wrapped.append((owner, name, tap, before))

    def release(self) -> None:
        """Take all taps off. A tap that other code has wrapped meanwhile stays, but only passes calls on."""
        self._open = False
        while self._wrapped:
            owner, name, tap, before = self._wrapped.pop()
            if vars(owner).get(name) is not tap:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


@dataclass(frozen=True)
class ReliedOn:
    """A name of another library that is private, or that its documentation does not promise.

    Attributes:
        library: The library that has it.
        owner: The object that has it, as the test calls it.
        names: The names.
        seen: The release of the library in which they were last seen.
        used: The modules of kifuse that use them.
        since: The first release that has them, if kifuse also accepts older ones; there it refuses what needs
            them.
    """

    library: str
    owner: str
    names: tuple[str, ...]
    seen: str
    used: str
    since: str = "0"


RELIED_ON: tuple[ReliedOn, ...] = (
    ReliedOn(
        "transformers",
        "trainer",
        ("training_step", "compute_loss", "compute_loss_func", "get_batch_samples", "model_wrapped"),
        "5.24.0",
        "driving.taps, driving.memory_steps, driving.batch_gradients, driving.method_loss",
    ),
    ReliedOn(
        "transformers",
        "trainer",
        ("_prepare_inputs", "compute_loss_context_manager", "model_accepts_loss_kwargs"),
        "5.24.0",
        "driving.batch_gradients, driving.example_gradients, driving.method_loss",
    ),
    ReliedOn(
        "transformers",
        "trainer in training",
        ("current_gradient_accumulation_steps", "_globalstep_last_logged", "_tr_loss"),
        "5.24.0",
        "driving.method_loss, driving.memory_steps, running.mid_task_checkpoint",
    ),
    ReliedOn(
        "transformers",
        "trainer",
        ("callback_handler", "control", "is_fsdp_enabled", "is_deepspeed_enabled", "_remove_unused_columns"),
        "5.24.0",
        "driving.find_trainer, driving.step_log, driving.refusals, driving.mixed_rows",
    ),
    ReliedOn(
        "transformers",
        "trainer",
        ("_save", "_load_from_checkpoint"),
        "5.24.0",
        "driving.taps, driving.brought_adapter",
    ),
    ReliedOn(
        "accelerate",
        "accelerator",
        ("scaler", "native_amp", "sync_gradients", "is_fsdp2", "clip_grad_norm_", "no_sync"),
        "1.15.0",
        "driving.finite_guard, driving.refusals, driving.memory_steps, driving.taps, driving.shards",
    ),
    ReliedOn("accelerate", "optimizer", ("step_was_skipped", "optimizer"), "1.15.0", "driving.callback"),
    ReliedOn("accelerate", "model under bf16", ("_original_forward",), "1.15.0", "driving.refusals"),
    ReliedOn(
        "accelerate", "accelerator under deepspeed", ("deepspeed_engine_wrapped",), "1.15.0", "driving.zero"
    ),
    ReliedOn("accelerate", "its deepspeed_engine_wrapped", ("backward", "engine"), "1.15.0", "driving.zero"),
    ReliedOn(
        "deepspeed",
        "engine",
        ("set_gradient_accumulation_boundary", "zero_optimization_stage", "lr_scheduler", "optimizer"),
        "0.19.8",
        "driving.zero",
    ),
    ReliedOn("deepspeed", "optimizer of the engine", ("clip_grad", "overflow"), "0.19.8", "driving.zero"),
    ReliedOn(
        "deepspeed",
        "optimizer of stage 2",
        ("bit16_groups", "check_grad_overflow"),
        "0.19.8",
        "driving.zero",
    ),
    ReliedOn(
        "deepspeed",
        "optimizer of stage 3",
        ("fp16_groups", "sub_group_to_group_id", "parameter_offload"),
        "0.19.8",
        "driving.zero",
    ),
    ReliedOn(
        "deepspeed",
        "its parameter_offload",
        ("partition_all_parameters",),
        "0.19.8",
        "driving.zero",
    ),
    ReliedOn(
        "deepspeed",
        "parameter of stage 3",
        ("ds_id", "ds_tensor", "ds_shape"),
        "0.19.8",
        "driving.zero, models.pieces",
    ),
    ReliedOn(
        "peft",
        "lora layer",
        ("lora_A", "lora_B", "scaling", "lora_variant", "lora_bias", "get_delta_weight"),
        "0.21.2",
        "adapters.stack, answering.merged_adapters",
    ),
    ReliedOn(
        "peft",
        "lora layer",
        ("merged", "merged_adapters", "active_adapters", "disable_adapters", "get_base_layer"),
        "0.21.2",
        "answering.merged_adapters",
    ),
    ReliedOn(
        "peft",
        "osf layer",
        ("_osf_U_high", "_osf_V_high", "_osf_U_low_init", "_osf_V_low_init", "osf_svd_params"),
        "0.21.2",
        "adapters.osf",
        since="0.21.0",
    ),
    ReliedOn(
        "peft",
        "osf layer",
        ("effective_rank", "hook_handles", "update_layer", "merged_adapters", "get_delta_weight"),
        "0.21.2",
        "adapters.osf",
        since="0.21.0",
    ),
    ReliedOn("lm_eval", "HFLM", ("_loglikelihood_tokens",), "0.4.13", "running.lm_eval_model"),
    ReliedOn("trl", "SFTTrainer", ("_prepare_dataset",), "1.16.0", "driving.row_memory"),
    ReliedOn(
        "trl",
        "source of SFTTrainer",
        ("self._formatting_func",),
        "1.16.0",
        "driving.row_memory",
        since="1.8.0",
    ),
)

"""Trainer set-ups in which a method cannot work, each with its reason and what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from kifuse.errors import RunError
from kifuse.methods.base import Method, Parameters
from kifuse.models.loading import narrow_4bit_layer
from kifuse.models.names import file_name

Setup = tuple[Callable[[Any], Any], str]
"""A test whether a Trainer has the set-up, and the message to raise."""


def _flag(name: str) -> Callable[[Any], bool]:
    return lambda trainer: bool(getattr(trainer.args, name, False))


def _optimizer_name(trainer: Any) -> str:
    name = getattr(trainer.args, "optim", "")
    return str(getattr(name, "value", name))


def _steps_in_backward(trainer: Any) -> bool:
    name = _optimizer_name(trainer)
    return name in ("lomo", "adalomo") or name.endswith("layerwise")


def _config(trainer: Any) -> Mapping[str, Any]:
    """DeepSpeed's configuration; empty where it does not train."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return {} if plugin is None else plugin.deepspeed_config


def _of_deepspeed(trainer: Any, section: str) -> Mapping[str, Any]:
    return _config(trainer).get(section) or {}


def _zero(trainer: Any) -> Mapping[str, Any]:
    found = _of_deepspeed(trainer, "zero_optimization")
    return found or ({"stage": 0} if _config(trainer) else {})


REFUSED: tuple[Setup, ...] = (
    (
        lambda trainer: _zero(trainer) and _zero(trainer).get("stage", 0) not in (1, 2, 3),
        "deepspeed: without ZeRO (stage 0) a method cannot see the gradients. Set stage: 1, 2 or 3 in "
        "zero_optimization, or use plain data parallelism (torchrun, accelerate launch).",
    ),
    (
        lambda trainer: any(
            (_zero(trainer).get(key) or {}).get("device", "none") != "none"
            for key in ("offload_optimizer", "offload_param")
        ),
        "deepspeed: kifuse cannot read gradients and weights that offload_optimizer and offload_param move "
        "away. Leave both out of zero_optimization.",
    ),
    (
        lambda trainer: _of_deepspeed(trainer, "fp16").get("enabled", False) is True,
        "deepspeed: in fp16 its engine scales the gradients, so a method would see wrong values. Train in "
        "bf16 or fp32.",
    ),
    (
        lambda trainer: (
            _zero(trainer)
            and _config(trainer).get("gradient_clipping") not in (None, trainer.args.max_grad_norm or 0.0)
        ),
        "deepspeed: gradient_clipping in its configuration and max_grad_norm in the TrainingArguments "
        "differ, so it is not clear how to clip the gradients. Set gradient_clipping: 'auto'.",
    ),
    (
        lambda trainer: (
            (getattr(trainer, "is_fsdp_enabled", False) or trainer.args.fsdp)
            and not getattr(trainer.accelerator, "is_fsdp2", False)
        ),
        "fsdp: version 1 joins the trained tensors into one flat tensor, so a method cannot score and fuse "
        "them separately. Set fsdp_version: 2, or use plain data parallelism (torchrun, accelerate launch).",
    ),
    (
        _flag("load_best_model_at_end"),
        "load_best_model_at_end: it would replace the weights without the method's state. Turn it off.",
    ),
    (
        lambda trainer: trainer.args.n_gpu > 1,
        "several GPUs in one process (DataParallel) split batches inside the model. Start one process per "
        "GPU with torchrun or accelerate launch, or let the process use one GPU (CUDA_VISIBLE_DEVICES).",
    ),
    (
        _flag("auto_find_batch_size"),
        "auto_find_batch_size: when memory runs out, it starts the task again with changed weights, which "
        "the method would take for those before the task. Turn it off, and set per_device_train_batch_size "
        "and gradient_accumulation_steps.",
    ),
    (
        _flag("enable_jit_checkpoint"),
        "enable_jit_checkpoint: it saves in the middle of a step, before the method has handled the step. "
        "Turn it off and set save_steps.",
    ),
    (
        _steps_in_backward,
        "optim: this optimizer steps inside the backward pass, before a method can see the gradients. Use "
        "another one, such as adamw_torch.",
    ),
)


def refuse(trainer: Any) -> None:
    """Refuse a Trainer in which methods cannot work, before its first step.

    Raises:
        RunError: Its set-up is one of `REFUSED`.
    """
    for is_so, message in REFUSED:
        if is_so(trainer):
            raise RunError(message)


INSTEAD = "Use plain data parallelism (torchrun, accelerate launch), or ZeRO of stage 1 or 2 in fp32."
NOT_IN_PIECES = {
    "answers": "lets the model sample answers, and each token of an answer is one call of every layer. A "
    "layer in pieces puts itself together only if all processes call it equally often, but their answers "
    f"have different lengths. {INSTEAD}",
    "curvature": "differentiates gradients once more. A layer in pieces gives its gradients at the end of "
    "the backward pass, outside of what torch can differentiate. Use second_order: false, or one process.",
}
"""By what a method needs: why no model in pieces can give it, and what works."""


def refuse_shards(method: Method) -> None:
    """Refuse to train a model that FSDP2 or DeepSpeed holds in pieces if the result could not be right.

    Args:
        method: The method.

    Raises:
        RunError: The method brings an adapter, samples answers, or differentiates gradients.
    """
    kind, where = type(method).__name__, "fsdp, deepspeed"
    if method.adapter is not None:
        raise RunError(
            f"{where}: {kind} gives the model other tensors for each task. FSDP2 and DeepSpeed cut the "
            f"tensors once, before the training, and cannot take in more. {INSTEAD}"
        )
    for need, why in NOT_IN_PIECES.items():
        if need in method.needs:
            raise RunError(f"{where}: with these settings {kind} {why}")


HOOKS_OF_TEXTS = ("training_examples", "remember")
"""Hooks that only kifuse's own runs can call."""


def refuse_method(method: Method, memory: Any, adapter: Any = None, *, keep_weights: bool = True) -> None:
    """Refuse a method that no callback can drive, or an argument that the method does not take.

    Args:
        method: The method.
        memory: Rows of earlier tasks that the method is to be given, or None.
        adapter: Settings of the adapter that the method brings, or None.
        keep_weights: Whether the trained tensors are kept after each task.

    Raises:
        RunError: The method needs other data than a callback can give it; or rows are given to a method that
            reads no old data, or an adapter to one that brings none, or the adapter that it brings is not to
            be kept.
    """
    kind = type(method).__name__
    if method.adapter is None and adapter is not None:
        raise RunError(
            f"adapter: {kind} trains the adapter that the script puts on the model. Leave adapter= out, and "
            "make the adapter in the script, for example with peft.get_peft_model."
        )
    if method.adapter is not None and not keep_weights:
        raise RunError(
            f"keep_weights: the adapter that {kind} trains is kept in the state_dir only. Leave "
            "keep_weights out."
        )
    if method.old_data == "all":
        raise RunError(
            f"{kind} trains on all tasks at once, which a callback cannot do. Put all tasks into "
            "train_dataset, or use kifuse.run or 'kifuse run'."
        )
    if any(getattr(type(method), name) is not getattr(Method, name) for name in HOOKS_OF_TEXTS):
        raise RunError(
            f"{kind} reads and writes examples as texts, but the rows of a Trainer are tokens. Use "
            "kifuse.ContinualLearner, kifuse.run or 'kifuse run'."
        )
    if method.old_data == "none" and memory is not None:
        raise RunError(f"memory: {kind} reads no old data with these settings. Leave memory= out.")
    wants = {
        "kept": "stores something with each row at the end of the row's task, which other rows do not have",
        "by task": "must know the task of each row, which other rows do not say",
    }
    for need in wants.keys() & method.needs if memory is not None else ():
        raise RunError(
            f"memory: {kind} {wants[need]}. Leave memory= out so that the callback keeps rows itself."
        )


def refuse_frozen(model: nn.Module | None) -> None:
    """Refuse a model that has nothing to train.

    Raises:
        RunError: No parameter requires a gradient.
    """
    if model is not None and not any(p.requires_grad for p in model.parameters()):
        raise RunError(
            "the model has no trainable parameter. To train an adapter further, load it with "
            "PeftModel.from_pretrained(model, folder, is_trainable=True)."
        )


def refuse_second(trainer: Any, callback: Any) -> None:
    """Refuse a method that one Trainer has twice: it would act twice on each step.

    Args:
        trainer: A Trainer, or None where it was not found.
        callback: One of its callbacks, with `method` and `state_dir`.

    Raises:
        RunError: Another callback has the same method or the same folder of states, or the same callback was
            given twice.
    """
    own, kind = callback.method, type(callback.method).__name__
    given = [] if trainer is None else trainer.callback_handler.callbacks
    others = [each for each in given if isinstance(each, type(callback))]
    if callback in others:
        others.remove(callback)
    for other in others:
        if other is callback or type(other.method) is type(own):
            raise RunError(
                f"{kind}: the Trainer has the callback of this method twice. Give it once, either in "
                "callbacks=[...] or with trainer.add_callback(...)."
            )
        if callback.state_dir is not None and callback.state_dir == other.state_dir:
            raise RunError(
                f"{callback.state_dir}: two callbacks of the Trainer have this state_dir, {kind} and "
                f"{type(other.method).__name__}. Give each its own."
            )


def refuse_training(trainer: Any, state: Any, *, finished: Any) -> None:
    """Refuse a training that is not the only one of its task.

    Args:
        trainer: The Trainer that begins the training, or None where it was not found.
        state: The Trainer's state.
        finished: The Trainer of the task before, or None.

    Raises:
        RunError: It is not the only one.
    """
    if trainer is None:
        raise RunError("the Trainer was not found: call callback.attach(trainer) before trainer.train().")
    if trainer is finished:
        raise RunError(
            "this Trainer has finished a task, and a second train() would use its optimizer's moments for "
            "the next task. Make a new Trainer for each task."
        )
    if state.is_hyper_param_search:
        raise RunError("hyperparameter search would learn the task in each trial. Search without a method.")


def refuse_learned(name: str, index: int, learned: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a task with the name of an earlier one.

    Args:
        name: The task's name.
        index: Its 0-based position.
        learned: Number and name of each task that was learned.

    Raises:
        RunError: An earlier task has this name.
    """
    for task in learned:
        if task["name"] == name and task["number"] <= index:
            raise RunError(
                f"task {name!r} was already learned, as number {task['number']} of {index}. Give this task "
                "another name, or none."
            )


def refuse_twice(state_dir: Path, data: str | None, learned: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to learn the last task again if it has no name of its own, as a second start would do.

    Args:
        state_dir: Folder of states.
        data: Hash of the task's rows, or None.
        learned: Number, name and `data` of each task that was learned.

    Raises:
        RunError: The rows are those of the last task.
    """
    if learned and data is not None and learned[-1].get("data") == data:
        last = learned[-1]
        raise RunError(
            f"{state_dir}: these rows were already learned, as task {last['name']!r}, number "
            f"{last['number']}. A second start of the same script would learn them as task "
            f"{last['number'] + 1}. To learn them once more, give this task a name: callback(name=...)."
        )


def refuse_parameters(method: Method, params: Parameters) -> None:
    """Refuse parameters that a method cannot work with, before its first step.

    Raises:
        RunError: See `Method.check`; or two adapters are trained at once, whose tensors have the same names
            on disk.
    """
    by_file: dict[str, str] = {}
    for name in params.names:
        other = by_file.setdefault(file_name(name), name)
        if other != name:
            raise RunError(
                f"{other} and {name} are both trained and belong to two adapters, but a method works with "
                "one. Choose the one to train with model.set_adapter(...)."
            )
    try:
        method.check(params)
    except ValueError as error:
        raise RunError(str(error)) from error


def refuse_packed(method: Method, model: nn.Module) -> None:
    """Refuse a method that looks at single examples if 4-bit layers on a CPU cannot take them.

    Raises:
        RunError: They cannot. This is found before the training, not after it.
    """
    narrow = narrow_4bit_layer(model) if "examples" in method.needs else ""
    if narrow:
        raise RunError(
            f"{type(method).__name__} looks at single examples after training, and {narrow}. Use 8 bits or "
            "no quantisation, a GPU, or another method."
        )


_TRAINED_IN: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def refuse_other_precision(trainer: Any, model: nn.Module) -> None:
    """Refuse to train a model in another precision than an earlier Trainer of this process did.

    The first Trainer patches the model's forward pass for its precision, and later ones leave that as it is:
    they would train in the old precision, or in full precision, without a word.

    Args:
        trainer: A Trainer that has prepared its model.
        model: Its model without wrappers.

    Raises:
        RunError: The precisions differ.
    """
    accelerator = trainer.accelerator
    wanted = str(accelerator.mixed_precision)
    found = "no"
    if "_original_forward" in vars(model):
        found = _TRAINED_IN.get(model, wanted if accelerator.native_amp else "mixed precision")
    elif not accelerator.native_amp:
        found = wanted
    if found != wanted:
        raise RunError(
            f"this Trainer should train in {_words(wanted)}, but an earlier Trainer of this process set the "
            f"model's forward pass to {_words(found)}, and that cannot be changed. Use one precision for a "
            "model, or start a new process."
        )
    _TRAINED_IN[model] = wanted


def _words(precision: str) -> str:
    return "full precision" if precision == "no" else precision


def nothing_learned(name: str, steps: int) -> str:
    """The message about a training that took no step, so that its task is not kept."""
    return (
        f"task {name!r}: nothing was learned: none of its {steps} steps had a finite loss and finite "
        "gradients, so the weights did not change, and the task is not kept. Look at its examples, lower "
        "the learning rate, use more warm-up steps, or train in bf16 or fp32 instead of fp16."
    )

"""The adapter that a method brings itself, on the model of a user's own Trainer.

The script gives the Trainer the base model, in every month. The adapter is put on it when the Trainer is
made. When training begins, and before the Trainer makes its optimizer, the adapter is taken from
`after-<k>/adapter` of the `state_dir` and made ready for its task.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from kifuse.adapters.base import Adapter, adapter_on
from kifuse.adapters.kinds import KINDS, adapter_class, new_adapter
from kifuse.config.schema import AdapterConfig
from kifuse.driving.base_model import base_of
from kifuse.driving.state_folder import (
    STATE,
    after_folder,
    newest_state,
    read_state,
    refuse_other_method,
    sealed_values,
)
from kifuse.driving.taps import Taps
from kifuse.errors import ConfigError, RunError
from kifuse.methods.base import Method
from kifuse.problems import from_pydantic

ADAPTER = "adapter"
"""The adapter's folder inside the folder of a state, and the key of its settings in `state.json`."""


class BroughtAdapter:
    """Puts the adapter of a method on the models of Trainers, and keeps it in a folder of states.

    Args:
        method: A method that brings an adapter.
        settings: The keys of `model.adapter` in a configuration; None takes those of the earlier tasks, or
            the defaults.
        state_dir: Folder of states.
        place: Called with a Trainer and what it was asked to resume from; gives the folder that training goes
            on from, or None if it starts.

    Raises:
        RunError: There is no folder to keep the adapter in.
        ConfigError: A setting is wrong.
    """

    def __init__(
        self,
        method: Method,
        settings: Mapping[str, Any] | None,
        state_dir: Path | None,
        place: Callable[[Any, Any], Path | None],
    ) -> None:
        self._kind = type(method).__name__
        if state_dir is None:
            raise RunError(
                f"{self._kind} trains its own adapter, which is kept from task to task. Name a folder for "
                "it: callback(state_dir=...)."
            )
        self.method, self.state_dir, self._place = method, state_dir, place
        self._given = None if settings is None else _checked(settings, method)
        self.adapter: Adapter | None = None
        self.settings = AdapterConfig()
        self.seed = 0
        self.base: dict[str, str] | None = None
        """The base model, from `base_of`; None if another callback has put the adapter on it."""
        self._untrained: dict[str, Tensor] = {}
        self._trainers: list[Taps] = []

    def watch(self, trainer: Any) -> None:
        """Put the adapter on a Trainer's model, and have it ready when the Trainer's training begins.

        Raises:
            RunError: The Trainer has an optimizer already, or its model an adapter.
            ModelError: The adapter cannot be put on this model.
        """
        if any(each.trainer is trainer for each in self._trainers):
            return
        if trainer.optimizer is not None:
            raise RunError(
                f"{self._kind} puts an adapter on the model, and an existing optimizer does not have its "
                "parameters. Leave optimizers= out (optimizer_cls_and_kwargs= chooses another one), and "
                "give the callback to the Trainer when you make it."
            )
        model = self._on(trainer.model, trainer.args.seed)
        trainer.model = trainer.model_wrapped = trainer.callback_handler.model = model
        taps = Taps(trainer)

        def train(original: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            self._make_ready(self._place(trainer, resume_from_checkpoint))
            return original(resume_from_checkpoint, *args, **kwargs)

        taps.train(train)
        taps.save(lambda *args, **kwargs: self._save(trainer, *args, **kwargs))
        # the callback puts back what was trained, in on_train_begin
        taps.load_from_checkpoint(lambda *_, **__: None)
        self._trainers.append(taps)

    def check(self, model: Any) -> None:
        """Make sure that a model about to be trained has the adapter.

        Raises:
            RunError: The model does not have it.
        """
        if self.adapter is None or adapter_on(model) is not self.adapter:
            raise RunError(
                f"{self._kind} put its adapter on the Trainer's model, but now another model is trained. "
                "Give the Trainer model= and not model_init=."
            )

    def end_task(self) -> None:
        """Finish the training of the task; see `Adapter.end_task`."""
        self._there().end_task()
        self._untrained = {}

    def save(self, folder: Path) -> None:
        """Write the adapter; see `Adapter.save`."""
        self._there().save(folder)

    def described(self) -> dict[str, Any]:
        """What the next month's script needs to make the same adapter, as JSON."""
        return {"settings": self.settings.model_dump(mode="json"), "seed": self.seed}

    def _there(self) -> Adapter:
        if self.adapter is None:
            raise RunError(f"{self._kind} has not put its adapter on a model yet.")
        return self.adapter

    def _on(self, model: Any, seed: int) -> Any:
        """Return the model with the adapter on it."""
        newest = newest_state(self.state_dir)
        if newest:
            file = after_folder(self.state_dir, newest) / STATE
            values = sealed_values(file)
            refuse_other_method(file, values, self.method)
            kept = AdapterConfig.model_validate(values[ADAPTER]["settings"])
            self.settings, self.seed = self._refuse_other_settings(file, kept), int(values[ADAPTER]["seed"])
        elif self.adapter is None:
            self.settings = _checked({}, self.method) if self._given is None else self._given
            self.seed = seed
        there = adapter_on(model)
        if there is None and not getattr(model, "peft_config", None):
            return self._attach(model)
        # the model of an earlier task, perhaps under its name before it was wrapped
        if there is None or not self._is_like(there):
            raise RunError(
                f"{self._kind} trains its own adapter, but the model already has one. Give the Trainer the "
                "base model for each task; what was learned is in the state_dir. Give settings of the "
                "adapter as callback(adapter={'rank': 8, ...})."
            )
        if there is not self.adapter and not newest:
            raise RunError(
                f"{self.state_dir}: holds no finished task, but the model was already trained. Load the "
                "base model again."
            )
        there.method, self.adapter = self.method, there
        return there.model

    def _is_like(self, there: Adapter) -> bool:
        """Whether an adapter is one of this method and these settings."""
        alike = type(there) is adapter_class(self.settings, self.method) and there.settings == self.settings
        same_method = type(there.method) is type(self.method)
        return alike and same_method and there.method.settings() == self.method.settings()

    def _attach(self, model: Any) -> Any:
        adapter = new_adapter(self.settings, self.method)
        type(adapter).refuse(self.settings, self._kind)
        encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.base = base_of(model.requires_grad_(False))
        devices = [model.device] if model.device.type == "cuda" else []
        # the Trainer's own random numbers stay as they are
        with torch.random.fork_rng(devices):
            adapted = adapter.attach(model, encoder_decoder=encoder_decoder, seed=self.seed)
        vars(model)["kifuse_adapter"] = self.adapter = adapter
        self._untrained = {name: p.detach().clone() for name, p in adapter.learned().items()}
        return adapted

    def _refuse_other_settings(self, file: Path, kept: AdapterConfig) -> AdapterConfig:
        """Return the settings that the earlier tasks were trained with.

        Raises:
            RunError: Other settings are asked for now; the message names the first that differs.
        """
        for key, value in self._given.model_dump(by_alias=False).items() if self._given is not None else ():
            if value != getattr(kept, key):
                raise RunError(
                    f"{file}: the adapter's {key} is {getattr(kept, key)!r}, but adapter= says {value!r} "
                    "now. Give the earlier value, leave adapter= out, or name a new folder."
                )
        return kept

    def _make_ready(self, checkpoint: Path | None) -> None:
        """Load what the earlier tasks left into the adapter, and begin the task."""
        file = None if checkpoint is None else checkpoint / STATE
        index = newest_state(self.state_dir)
        if file is not None and file.is_file():
            index = int(sealed_values(file)["index"])
        adapter = self._there()
        if index:
            folder = after_folder(self.state_dir, index)
            read_state(folder, without=frozenset({"method.safetensors"}))
            adapter.load(folder / ADAPTER)
        elif self._untrained:
            adapter.restart(self._untrained)
        devices = [adapter.model.device] if adapter.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            adapter.begin_task(index, self.seed)

    def _save(self, trainer: Any, original: Any, output_dir: Any = None, state_dict: Any = None) -> Any:
        """Let the Trainer write the adapter in place of a model, and everything else as usual."""
        if not trainer.args.should_save:
            return original(output_dir, state_dict)
        folder = Path(trainer.args.output_dir if output_dir is None else output_dir)
        partial = folder / ".adapter"
        self.save(partial)

        def move(*_: Any, **__: Any) -> None:
            for file in partial.iterdir():
                file.replace(folder / file.name)

        vars(trainer.model)["save_pretrained"] = move
        try:
            return original(output_dir, state_dict)
        finally:
            del vars(trainer.model)["save_pretrained"]
            shutil.rmtree(partial, ignore_errors=True)


def _checked(settings: Mapping[str, Any], method: Method) -> AdapterConfig:
    """Check the settings of an adapter, and add the defaults.

    Raises:
        ConfigError: One is unknown or wrong.
    """
    own = {"kind": method.adapter} if method.adapter in KINDS else {}
    data = {**own, **settings}
    if data.get("from") is not None:
        raise ConfigError(
            f"adapter.from: found {data['from']!r}, expected nothing, as a callback trains the adapter of "
            "the model. Put it on the model with PeftModel.from_pretrained(model, folder, "
            "is_trainable=True)."
        )
    try:
        return AdapterConfig.model_validate(data)
    except ValidationError as error:
        problems = from_pydantic(error.errors(include_url=False), AdapterConfig.model_fields, data)
        raise ConfigError("\n".join(problem.render("adapter") for problem in problems)) from error

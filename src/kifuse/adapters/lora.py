"""LoRA, its variants and (IA)3 through PEFT: W0 stays frozen (KIF Eq. 2), and standard adapters are saved."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kifuse.adapters.base import Adapter, attached
from kifuse.adapters.folder import WEIGHTS, is_full, read_config, refuse_other_tensors
from kifuse.adapters.places import target_modules
from kifuse.errors import ModelError
from kifuse.io.whole_folders import replace_folder

CURRENT = "default"
"""Name of the PEFT adapter that is trained."""

SWITCHES: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
"""The kinds that are LoRA with one of PEFT's switches on."""

FEED_FORWARD = {"wo", "down_proj", "mlp.c_proj", "fc2", "w2", "dense_4h_to_h"}
"""Second feed-forward matrices. (IA)3 scales the inputs of these, and the outputs of all other layers."""


@contextlib.contextmanager
def peft_asking_transformers() -> Iterator[None]:
    """Hide the warning of transformers 5.24 when PEFT 0.21 asks for a deprecated name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


class Peft(Adapter):
    """A standard PEFT adapter of the kinds `lora`, `rslora`, `dora` and `ia3`."""

    @classmethod
    def refuse(cls, settings: Any, method: str) -> None:
        """Refuse nothing: LoRA can start from LoRA, and the kind (IA)3 was already refused elsewhere."""

    def start_from(self, folder: Path) -> None:
        """Load the weights into those that the first task trains."""
        self.load(folder)

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Wrap the model with a PEFT adapter.

        Raises:
            ModelError: See `target_modules`; or PEFT has no adapter for a chosen module; or this kind cannot
                be trained on quantised weights.
        """
        from peft import TaskType, get_peft_model

        kind = getattr(self.settings, "kind", "lora")
        if kind == "dora" and getattr(model, "is_loaded_in_8bit", False) and model.device.type == "cpu":
            # PEFT 0.21 loses the scales of 8-bit weights on a CPU when it computes their norms
            raise ModelError(
                "model.adapter.kind: 'dora' on 8-bit weights needs a GPU. Use model.quantization '4bit', "
                "or another kind of adapter."
            )
        targets = target_modules(model, self.settings.target_modules, kind)
        config = self._config(
            model,
            kind,
            target_modules=targets,
            task_type=TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
        )
        torch.manual_seed(seed)
        try:
            with peft_asking_transformers():
                return attached(self, get_peft_model(model, config))
        except ValueError as error:
            raise ModelError(
                f"model.adapter.target_modules: no {kind} adapter can be put on {', '.join(targets)}: {error}"
            ) from error

    def _config(self, model: Any, kind: str, **shared: Any) -> Any:
        """PEFT's configuration."""
        from peft import IA3Config, LoraConfig

        shared["fan_in_fan_out"] = getattr(getattr(model, "config", None), "model_type", "") == "gpt2"
        if kind == "ia3":
            targets = shared["target_modules"]
            inner = [name for name in targets if any(f".{name}".endswith(f".{end}") for end in FEED_FORWARD)]
            return IA3Config(feedforward_modules=inner, **shared)
        return LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            **shared,
            **SWITCHES[kind],
        )

    def save(self, folder: Path) -> None:
        """Write a standard PEFT adapter folder."""
        write = self.model.save_pretrained
        for config in self.model.peft_config.values():
            in_order(config)
        replace_folder(folder, lambda partial: write(str(partial), safe_serialization=True))

    def load(self, folder: Path) -> None:
        """Load saved weights into the model's trainable ones.

        Raises:
            ModelError: The folder holds no adapter, or an adapter of another kind, shape or model.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = folder / WEIGHTS
        if not file.is_file():
            raise ModelError(f"{folder}: no adapter there ({WEIGHTS} is missing).")
        if is_full(read_config(folder)):
            kind = self.model.active_peft_config.peft_type.value
            raise ModelError(f"{folder}: holds weights of full fine-tuning, expected an adapter ({kind}).")
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ModelError(f"{file}: cannot be loaded as the adapter of this model: {error}") from error
        own = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        trained = {name: tuple(t.shape) for name, t in own.items()}
        # an adapted embedding is saved with its frozen base, which is not checked here
        found = {name: tuple(t.shape) for name, t in tensors.items() if "base_layer" not in name}
        refuse_other_tensors(file, found, trained)
        places = {p.data_ptr() for p in self.learned().values()}
        if all(t.data_ptr() in places for t in own.values()):
            # in place: torch's load_state_dict fails while a model in pieces holds its adapter as a whole
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
            return
        try:
            set_peft_model_state_dict(self.model, tensors)
        except RuntimeError as error:
            raise ModelError(f"{file}: cannot be loaded as the adapter of this model: {error}") from error


def in_order(config: Any) -> None:
    """Sort the sets of names in a PEFT configuration, so that every process writes the same file."""
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))

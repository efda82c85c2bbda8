"""A saved adapter, put on a model outside of any run: for serving what no other library knows, as L2P's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kifuse.adapters.folder import is_own, read_config
from kifuse.adapters.kinds import new_adapter
from kifuse.errors import ModelError
from kifuse.registry import METHODS, build_method


def load_adapter(model: Any, folder: str | Path, *, task: int | None = None) -> Any:
    """Put a saved adapter on a model.

    Args:
        model: A transformers model, as the adapter's base was; changed in place.
        folder: `adapters/after-<k>` of a run or a learner. A standard PEFT adapter is loaded as well.
        task: For a method whose class is "task id given": the number, from 1, of the learned task whose
            inputs the model is to answer; `adapter_on(model).told` says another one later, from 0.

    Returns:
        The model that answers with what was learned.

    Raises:
        ModelError: The folder holds no adapter, one of another model, or one of a method that is not
            registered: no code is run because a folder names it; or its method cannot be told a task.
    """
    place = Path(folder).expanduser()
    config = read_config(place)
    if config.get("peft_type"):
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(place))
    if not is_own(config):
        raise ModelError(f"{place}: holds weights of the model itself; load them with {config['load_with']}.")
    wanted = config.get("method")
    name = next((name for name, entry in METHODS.items() if entry.target == wanted), None)
    if name is None:
        raise ModelError(
            f"{place}: was learned by the method {wanted!r}, which is not known here; import its file "
            "and call kifuse.register first."
        )
    method = build_method(name, config["method_settings"])
    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    adapter = new_adapter(SimpleNamespace(**config["settings"]), method)
    made = adapter.attach(model, encoder_decoder=encoder_decoder, seed=0)
    adapter.load(place)
    if task is not None:
        if method.data_class != "task id given" or task < 1:
            raise ModelError(
                f"task: found {task}, expected a number from 1 for a method whose class is 'task id given'; "
                f"{name!r} with these settings is {method.data_class!r}."
            )
        adapter.told = task - 1
    return made.eval()

"""`model.adapter.from`: takes the settings of an adapter that was made elsewhere from that adapter."""

from __future__ import annotations

from pathlib import Path

from kifuse.adapters.elsewhere import lora_settings
from kifuse.config.schema import RunConfig
from kifuse.errors import ConfigError
from kifuse.problems import show_value


def own_copy(output: Path) -> Path:
    """The folder in which a run or a learner keeps a copy of the adapter that it started from."""
    return output / "adapters" / "after-0"


def start_of(config: RunConfig) -> Path | None:
    """The folder to read the adapter from: the copy in a run that has started, or the named folder."""
    copy = own_copy(config.output)
    return copy if config.model.adapter.from_ and copy.is_dir() else config.model.adapter.from_


def with_start(config: RunConfig) -> RunConfig:
    """Return the configuration with the kind, rank, alpha and layers of the adapter that it starts from.

    Raises:
        ConfigError: The configuration sets one of them to something else.
        ModelError: There is no such adapter, or tasks cannot continue from it.
    """
    folder, adapter = start_of(config), config.model.adapter
    if folder is None:
        return config
    found = lora_settings(folder)
    given = {key: getattr(adapter, key) for key in found if key in adapter.model_fields_set}
    given = {key: sorted(value) if isinstance(value, list) else value for key, value in given.items()}
    wrong = [key for key, value in given.items() if value not in (found[key], None)]
    if wrong:
        raise ConfigError(
            "\n".join(
                f"model.adapter.{key}: found {show_value(given[key])}, expected {show_value(found[key])}, "
                f"as in the adapter in {adapter.from_}. Leave the key out."
                for key in wrong
            )
        )
    model = config.model.model_copy(update={"adapter": adapter.model_copy(update=found)})
    return config.model_copy(update={"model": model})

"""The grid of a comparison: variants (a method with its settings), orders and seeds, one run for each.

It comes from the section `compare:` of a run's configuration, from the command line, or from both:

    compare:
      methods:
        - replay
        - {label: four-steps, name: recurrent-kif, outer_steps: 4}
        - {label: low-rate, name: replay, set: {training.learning_rate: 1.0e-4}}
      orders: [1, 2, 3]
      seeds: [0, 1]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.benchmarks.catalog import BENCHMARKS
from kifuse.comparing.section import SECTION, Variant, own_variant, read_section
from kifuse.config import RunConfig, load_config
from kifuse.config.reading import Document, read_yaml
from kifuse.errors import ConfigError

OPTIONS = {"method": "--methods", "data.order": "--orders", "training.seed": "--seeds"}
"""The keys of a run for which a grid has lists, with the options that give them."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid.

    Attributes:
        variant: The method with its settings.
        order: Number of the task order; None where the stream has no numbered orders.
        seed: The seed of the training.
        config: The whole run, with its folder.
    """

    variant: Variant
    order: int | None
    seed: int
    config: RunConfig

    @property
    def title(self) -> str:
        """For people: `replay, order 1, seed 0`."""
        order = "" if self.order is None else f"order {self.order}, "
        return f"{self.variant.label}, {order}seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.config.output


@dataclass(frozen=True)
class Grid:
    """A comparison.

    Attributes:
        folder: The folder of the comparison; a run's is `<folder>/<label>/order<k>-seed<s>`.
        common: What all runs share. Its method, order and seed are not used.
        variants: The methods.
        runs: All runs; the methods of a seed and an order stand together.
    """

    folder: Path
    common: RunConfig
    variants: tuple[Variant, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def orders(self) -> list[int]:
        """Numbers of the task orders; none where the stream has no numbered orders."""
        return list(dict.fromkeys(planned.order for planned in self.runs if planned.order is not None))

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trainings."""
        return list(dict.fromkeys(planned.seed for planned in self.runs))


def load_grid(
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    methods: Sequence[str] | None = None,
    orders: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    flags: Mapping[str, str] | None = None,
    check_files: bool = False,
) -> Grid:
    """Read and check a grid.

    Args:
        path: A run's configuration, with or without a section `compare`; None: all is in `overrides`.
        overrides: Values by dotted key that replace the file's, for all runs.
        methods: Labels of the file's variants, or names of methods; None: those of the file, or its method.
        orders: Numbers of task orders; None: the file's.
        seeds: The seeds of the trainings; None: the file's.
        flags: The command line's options by dotted key, for messages.
        check_files: Whether the data must be there.

    Returns:
        The grid, every run of which is checked.

    Raises:
        ConfigError: Something is wrong; the message holds every problem once.
    """
    document = read_yaml(path) if path is not None else Document(Path())
    section = read_section(document, path)
    _refuse_listed(overrides)
    own = own_variant(document, path)
    variants = section.variants if methods is None else section.choose(methods, own, OPTIONS["method"])
    if not variants:
        if own is None:
            raise ConfigError(
                f"{path or 'compare'}: found no methods, expected at least one. Name them with "
                f"{OPTIONS['method']}, or in the section '{SECTION}' of a CONFIG.yaml."
            )
        variants = (own,)
    places = {
        "data.order": OPTIONS["data.order"] if orders is not None else f"{path}: {SECTION}.orders",
        "training.seed": OPTIONS["training.seed"] if seeds is not None else f"{path}: {SECTION}.seeds",
    }
    loader = _Loader(path, overrides, {**(flags or {}), **places}, check_files)
    runs = [
        loader.planned(variant, order, seed)
        for seed in (section.seeds if seeds is None else seeds) or (None,)
        for order in (section.orders if orders is None else orders) or (None,)
        for variant in variants
    ]
    common = loader.load(dataclasses.replace(variants[0], changes={}), {})
    found = tuple(planned for planned in runs if planned is not None)
    if loader.problems or common is None:
        raise ConfigError("\n".join(loader.problems))
    return Grid(common.output, common, variants, found)


class _Loader:
    """Makes the configurations of a grid's runs, and gathers what is wrong with them."""

    def __init__(
        self, path: Path | None, overrides: Mapping[str, Any], flags: Mapping[str, str], check_files: bool
    ) -> None:
        self.path, self.overrides, self.flags, self.check_files = path, overrides, flags, check_files
        self.problems: dict[str, None] = {}

    def load(self, variant: Variant, chosen: Mapping[str, Any]) -> RunConfig | None:
        """A variant's configuration with an order and a seed; None if something is wrong with it."""
        try:
            return load_config(
                self.path,
                {**self.overrides, **variant.overrides(), **chosen},
                flags={**self.flags, **variant.places},
                check_files=self.check_files,
                without=(SECTION, "method"),
            )
        except ConfigError as error:
            self.problems |= dict.fromkeys(str(error).split("\n"))
            return None

    def planned(self, variant: Variant, order: int | None, seed: int | None) -> PlannedRun | None:
        """One run; None if something is wrong with it."""
        given = {"data.order": order, "training.seed": seed}
        config = self.load(variant, {key: value for key, value in given.items() if value is not None})
        if config is None:
            return None
        data = config.data
        if data.benchmark is not None and data.order is None:
            # by its number, so that a later call may name it
            data = data.model_copy(update={"order": next(iter(BENCHMARKS[data.benchmark].orders))})
        number = data.order if isinstance(data.order, int) else None
        name = f"{'' if number is None else f'order{number}-'}seed{config.training.seed}"
        # a method of one's own has a colon in its name, which not every file system takes
        output = config.output / variant.label.replace(":", "-") / name
        config = config.model_copy(update={"data": data, "output": output})
        return PlannedRun(variant, number, config.training.seed, config)


def _refuse_listed(overrides: Mapping[str, Any]) -> None:
    """Keys that differ between the runs are given as lists."""
    problems = [
        f"--set {key}: found a key that the runs of a comparison differ in, expected {option}."
        for key in overrides
        for listed, option in OPTIONS.items()
        if key == listed or key.startswith(f"{listed}.")
    ]
    if problems:
        raise ConfigError("\n".join(problems))

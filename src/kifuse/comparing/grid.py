"""The grid of a comparison: variants (a method with its settings), orders and seeds, one run for each.

It comes from the section `compare:` of a run's configuration, from the command line, or from both:

    compare:
      methods:
        - replay
        - {label: four-steps, name: recurrent-kif, outer_steps: 4}
        - {label: low-rate, name: replay, set: {training.learning_rate: 1.0e-4}}
      orders: [1, 2, 3]
      seeds: [0, 1]
      vary: {training.learning_rate: [1.0e-4, 3.0e-4]}   # chosen on dev, for each method

If keys are varied, the grid's runs are scored on dev. Once all values of a method are scored, the runs with
the best value become those of the comparison: their states are scored on test. The states of other values
never are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.benchmarks.catalog import BENCHMARKS
from kifuse.comparing.compare_section import SECTION, Section, Variant, own_variant, read_section
from kifuse.comparing.placing import Placing
from kifuse.comparing.varied_settings import HELD_OUT, ON_DEV, Point, merged, points
from kifuse.config import RunConfig, load_config
from kifuse.config.reading import Document, read_yaml
from kifuse.errors import ConfigError
from kifuse.reporting.run_groups import COMPARISON_FILE

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
        point: The values of the keys that are varied; None if none are.
    """

    variant: Variant
    order: int | None
    seed: int
    config: RunConfig
    point: Point | None = None

    @property
    def title(self) -> str:
        """The run's name for people: `replay, order 1, seed 0`."""
        order = "" if self.order is None else f"order {self.order}, "
        tried = "" if self.point is None else f"{self.point.title}, "
        return f"{self.variant.label}, {tried}{order}seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.config.output

    def tested(self) -> PlannedRun:
        """For a run that is scored on dev: the run of the same training that is scored on test."""
        data = self.config.data.model_copy(update={"scored_on": "test"})
        output = self.folder.parents[2] / self.folder.name
        return dataclasses.replace(
            self, config=self.config.model_copy(update={"data": data, "output": output})
        )


@dataclass(frozen=True)
class Grid:
    """A comparison.

    Attributes:
        folder: The folder of the comparison; a run's is `<folder>/<label>/order<k>-seed<s>`.
        common: What all runs share. Its method, order and seed are not used.
        variants: The methods.
        runs: All runs; the methods of a seed and an order stand together.
        vary: The values that are tried for each method, by dotted key; if there are any, the runs are scored
            on dev, and lie in `<folder>/<label>/on-dev/<values>/`.
        placing: Where the runs are made, as the file says.
    """

    folder: Path
    common: RunConfig
    variants: tuple[Variant, ...]
    runs: tuple[PlannedRun, ...]
    vary: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    placing: Placing = dataclasses.field(default_factory=Placing)

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
    variants: Sequence[Variant] = (),
    orders: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    vary: Mapping[str, tuple[Any, ...]] | None = None,
    flags: Mapping[str, str] | None = None,
    check_files: bool = False,
) -> Grid:
    """Read and check a grid.

    Args:
        path: A run's configuration, with or without a section `compare`; None if all is in `overrides`.
        overrides: Values by dotted key that replace the file's, for all runs.
        methods: Labels of the file's variants, or names of methods; None for those of the file, or its
            method.
        variants: The variants themselves, in place of `methods` and the file's.
        orders: Numbers of task orders; None for the file's.
        seeds: The seeds of the trainings; None for the file's.
        vary: Values to try, by dotted key; None for the file's. If the folder holds some already, the choice
            is among all its values, over all its orders and seeds.
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
    if not variants:
        variants = section.variants if methods is None else section.choose(methods, own, OPTIONS["method"])
    if not variants:
        if own is None:
            raise ConfigError(
                f"{path or 'compare'}: found no methods, expected at least one. Name them with "
                f"{OPTIONS['method']}, or in the section '{SECTION}' of a CONFIG.yaml."
            )
        variants = (own,)
    orders = section.orders if orders is None else orders
    seeds = section.seeds if seeds is None else seeds
    vary = section.vary if vary is None else vary
    _refuse_set(vary, overrides, variants)
    loader = _Loader(
        path, overrides, {**_places(path, orders, seeds, vary, section), **(flags or {})}, check_files
    )
    common = loader.load(dataclasses.replace(variants[0], changes={}), {}, bool(vary))
    if common is not None and vary:
        orders, seeds, vary = _with_those_there(common.output, orders, seeds, vary)
    runs = [
        loader.planned(variant, order, seed, point)
        for seed in seeds or (None,)
        for order in orders or (None,)
        for variant in variants
        for point in (points(vary) if vary else (None,))
    ]
    found = tuple(planned for planned in runs if planned is not None)
    if loader.problems or common is None:
        raise ConfigError("\n".join(loader.problems))
    return Grid(common.output, common, tuple(variants), found, vary, section.placing)


def folder_name(label: str) -> str:
    """The name of a variant's folder: a user's own method has a colon in its name, not allowed everywhere."""
    return label.replace(":", "-")


def run_name(order: int | None, seed: int) -> str:
    """The name of a run's folder in the folder of its variant."""
    return f"{'' if order is None else f'order{order}-'}seed{seed}"


def _places(
    path: Path | None,
    orders: Sequence[int],
    seeds: Sequence[int],
    vary: Mapping[str, tuple[Any, ...]],
    section: Section,
) -> dict[str, str]:
    """Where the lists were given, for messages, by the key that each is for."""
    lists = {
        "data.order": (orders, section.orders, "orders"),
        "training.seed": (seeds, section.seeds, "seeds"),
    }
    places = {
        key: f"{path}: {SECTION}.{name}" if given is there else OPTIONS[key]
        for key, (given, there, name) in lists.items()
    }
    varied = f"{path}: {SECTION}.vary" if vary is section.vary else "--vary"
    return places | {key: f"{varied} {key}" for key in vary}


def _refuse_set(vary: Mapping[str, Any], overrides: Mapping[str, Any], variants: Sequence[Variant]) -> None:
    """Refuse to vary what is set for all runs, or for one of the rows.

    Raises:
        ConfigError: There is such a key.
    """
    for key in vary:
        rows = [variant.label for variant in variants if key in variant.overrides()]
        by = "--set" if key in overrides else f"the row {rows[0]!r}" if rows else None
        if by is not None:
            raise ConfigError(
                f"--vary {key}: found the key in {by} as well, expected one of them. Remove one."
            )


def _with_those_there(
    folder: Path, orders: Sequence[int], seeds: Sequence[int], vary: Mapping[str, tuple[Any, ...]]
) -> tuple[Sequence[int], Sequence[int], Mapping[str, tuple[Any, ...]]]:
    """Add the orders, seeds and values that the folder holds: one value is chosen over all of them."""
    file = folder / COMPARISON_FILE
    there = read_section(read_yaml(file), file) if file.is_file() else Section()
    if not there.vary:
        return orders, seeds, vary
    if set(there.vary) != set(vary):
        raise ConfigError(
            f"--vary: found {', '.join(vary)}, expected {', '.join(there.vary)}, as in {file}. Name another "
            "folder to try other keys."
        )
    return (
        list(dict.fromkeys([*there.orders, *orders])),
        list(dict.fromkeys([*there.seeds, *seeds])),
        merged(there.vary, vary),
    )


class _Loader:
    """Makes the configurations of a grid's runs, and gathers what is wrong with them."""

    def __init__(
        self, path: Path | None, overrides: Mapping[str, Any], flags: Mapping[str, str], check_files: bool
    ) -> None:
        self.path, self.overrides, self.flags, self.check_files = path, overrides, flags, check_files
        self.problems: dict[str, None] = {}

    def load(self, variant: Variant, chosen: Mapping[str, Any], choosing: bool) -> RunConfig | None:
        """A variant's configuration with an order and a seed; None if something is wrong with it.

        Args:
            variant: The variant.
            chosen: Other values, by dotted key.
            choosing: Whether the stream must have dev examples.
        """
        try:
            config = load_config(
                self.path,
                {**self.overrides, **variant.overrides(), **chosen},
                flags={**self.flags, **variant.places},
                check_files=self.check_files,
                without=(SECTION, "method"),
            )
        except ConfigError as error:
            self.problems |= dict.fromkeys(str(error).split("\n"))
            return None
        if choosing and not config.data.hold_out:
            config = config.model_copy(update={"data": config.data.model_copy(update={"hold_out": HELD_OUT})})
        return config

    def planned(
        self, variant: Variant, order: int | None, seed: int | None, point: Point | None
    ) -> PlannedRun | None:
        """Plan one run; None if something is wrong with it, or with an earlier value: it would be again."""
        if point is not None and self.problems:
            return None
        given = {"data.order": order, "training.seed": seed}
        chosen = {key: value for key, value in given.items() if value is not None}
        tried = {} if point is None else dict(point.values)
        config = self.load(variant, {**chosen, **tried}, point is not None)
        if config is None:
            return None
        data = config.data
        if data.benchmark is not None and data.order is None:
            # by its number, so that a later call may name it
            data = data.model_copy(update={"order": next(iter(BENCHMARKS[data.benchmark].orders))})
        number = data.order if isinstance(data.order, int) else None
        output = config.output / folder_name(variant.label)
        if point is not None:
            data = data.model_copy(update={"scored_on": "dev"})
            output = output / ON_DEV / point.name
        output /= run_name(number, config.training.seed)
        config = config.model_copy(update={"data": data, "output": output})
        return PlannedRun(variant, number, config.training.seed, config, point)


def _refuse_listed(overrides: Mapping[str, Any]) -> None:
    """Refuse keys in which the runs differ: they are given as lists."""
    problems = [
        f"--set {key}: found a key that differs between the runs of a comparison, expected {option}."
        for key in overrides
        for listed, option in OPTIONS.items()
        if key == listed or key.startswith(f"{listed}.")
    ]
    if problems:
        raise ConfigError("\n".join(problems))

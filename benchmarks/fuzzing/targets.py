"""The kinds of input that are fuzzed: for each, how sound files are written, damaged, read and checked."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import formats, mutations, sound
from fuzzing.values import NAMES
from kifuse.config import DataConfig, RunConfig, load_config, parse_overrides, to_yaml
from kifuse.errors import KifuseError
from kifuse.io.storage import read_json, read_tensors, write_json, write_text
from kifuse.record.run_record import RunRecord
from kifuse.streams import open_stream
from kifuse.tasks import Example, MemoryBuffer, Task, TaskStream, read_stream, read_task
from kifuse.tasks.leaks import check_memory as check_leaks
from kifuse.tasks.leaks import check_training
from kifuse.tasks.readers import LAYOUTS


class Fault(AssertionError):
    """An object that was read lacks a property that it must have."""


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        build: Writes sound files into an empty folder.
        load: Reads the folder; the second argument decides at random how.
        check: Raises Fault if the object that was read is not valid.
        damage: Damages the files; the default works on JSON and bytes.
    """

    build: Callable[[Path, Random], None]
    load: Callable[[Path, Random], Any]
    check: Callable[[Any, Path], None]
    damage: Callable[[Path, Random, Path], None] | None = None


def expect(holds: bool, what: str) -> None:
    """Raise Fault with the message `what` unless `holds`."""
    if not holds:
        raise Fault(what)


# Reading them


def load_stream(root: Path, rng: Random) -> TaskStream:
    """Read a folder as a user would: all of it, some tasks, some examples, or through a configuration."""
    order = None
    if rng.random() < 0.15:
        order = rng.choices([*NAMES, "yelp", "1572", "colour"], k=rng.choice([1, 2]))
    way = rng.random()
    if way < 0.15:
        path = rng.choice(sorted(root.rglob("*")) or [root])
        return read_stream(path, order)
    if way < 0.25:
        path = rng.choice(sorted(root.iterdir()) or [root])
        task = read_task(path, None if order is None else order[0])
        return TaskStream("one", (task,))
    if way < 0.3:
        return read_stream(root, order, rng.choice(["auto", *LAYOUTS]))
    if way < 0.4 and order is None:
        sizes = {"train_examples": 2, "test_examples": 1}
        benchmark = rng.choice([None, None, "standard-cl", "superni"])
        data = DataConfig.model_validate({"path": str(root), "benchmark": benchmark, **sizes})
        return open_stream(data, seed=1)
    return read_stream(root, order)


def load_configuration(root: Path, rng: Random) -> RunConfig:
    """Read a configuration, with or without settings from the command line."""
    settings = mutations.overrides(rng, sound.CONFIG_KEYS) if rng.random() < 0.3 else []
    check = rng.random() < 0.1
    try:
        return load_config(root / "run.yaml", parse_overrides(settings), check_files=check)
    except KifuseError as error:
        # an error in a setting names the setting instead of a file
        expect(
            str(root) in str(error) or (bool(settings) and "--set" in str(error)), f"no place named: {error}"
        )
        raise KifuseError(f"{root}: {error}") from error


def load_memory(root: Path, rng: Random) -> MemoryBuffer:
    """Read the state of a memory buffer as a run does."""
    return MemoryBuffer.from_state(read_json(root / "memory.json"), root / "memory.json")


# What must hold of what was read


def safe_name(name: str) -> bool:
    """Return whether a name can be a file name on Linux, macOS and Windows; does not use kifuse's rule."""
    stem = name.split(".")[0].strip().upper()
    reserved = {
        "CON",
        "PRN",
        "AUX",
        "NUL",
        *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"),
    }
    bad = set('<>:"/\\|?*') | {chr(code) for code in [*range(32), *range(127, 160)]}
    return (
        0 < len(name.encode("utf-8", "replace")) <= 200
        and not bad & set(name)
        and stem not in reserved
        and name[0] not in " ." + "\u3000"
        and name[-1] not in " ."
        and not any(unicodedata.category(char) in ("Cs", "Zl", "Zp") for char in name)
    )


def check_texts(*texts: Any) -> None:
    """Check that UTF-8 can hold every text."""
    for text in texts:
        expect(isinstance(text, str), f"not a text: {text!r:.80}")
        text.encode("utf-8")


def check_example(example: Example) -> None:
    """Check that an example has a question and an accepted answer."""
    check_texts(example.head, example.body, example.tail)
    expect(bool(example.input.strip() or example.target.strip()), "neither an input nor a text to continue")
    expect(isinstance(example.references, tuple) and len(example.references) > 0, "no reference")
    check_texts(*example.references)
    if example.id is not None:
        check_texts(example.id)


def check_stream(stream: TaskStream, root: Path) -> None:
    """Check that names are file names, examples are whole, and a run can write its files about them."""
    check_texts(stream.name, *stream.warnings)
    expect(len(stream) > 0, "no task")
    alike = {unicodedata.normalize("NFC", task.name.casefold()) for task in stream}
    expect(len(alike) == len(stream), "two tasks would share a file where letter case does not count")
    memory = MemoryBuffer(per_task=2)
    for task in stream:
        expect(safe_name(task.name), f"unsafe name {task.name!r}")
        check_texts(task.name, task.source)
        expect(bool(task.train or task.test), "a task with neither train nor test examples")
        for split in ("train", "dev", "test"):
            for example in task.split(split):
                check_example(example)
            expect(len(task.split_hash(split)) == 64, "hash")
        if task.labels is not None:
            check_texts(*task.labels)
            expect(len(set(task.labels)) == len(task.labels) > 0, "labels twice, or none")
            expect(all(label.strip() for label in task.labels), "an empty label")
            given = {target for example in task.train for target in example.references}
            expect(given <= set(task.labels), "a training target that is no label")
        if task.train:
            memory.add(task)
            check_leaks(memory, stream.tasks)
            check_training(task.train, [task])
            expect(len(task.subset(train=1).train) == 1, "subset")
        _write(root.parent / "out" / "after-1" / f"{task.name}.jsonl", task)
    written = sorted(path.name for path in (root.parent / "out" / "after-1").rglob("*"))
    expect(written == sorted(f"{task.name}.jsonl" for task in stream), "a file went elsewhere")
    write_json(root.parent / "out" / "memory.json", memory.state())
    check_memory(MemoryBuffer.from_state(read_json(root.parent / "out" / "memory.json")), root)
    expect(all(overlap.count > 0 for overlap in stream.overlaps()), "overlap")


def check_formats(stream: TaskStream, root: Path) -> None:
    """Check as `check_stream`, and that nothing in the data was dropped in silence."""
    check_stream(stream, root)
    expect(not (dropped := formats.undropped(stream, root)), dropped)


def _write(path: Path, task: Task) -> None:
    rows = [{"id": e.id, "input": e.input, "references": list(e.references)} for e in task.test[:3]]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def check_config(config: RunConfig, root: Path) -> None:
    """Check that the configuration is the same after it is written and read again."""
    text = to_yaml(config)
    write_text(root.parent / "out" / "config.yaml", text)
    expect(load_config(root.parent / "out" / "config.yaml") == config, "changed by writing and reading")
    expect(0 < config.memory.share <= 1, "share")
    expect(math.isfinite(config.training.learning_rate) and config.training.epochs >= 1, "training")


def check_record(record: RunRecord, root: Path) -> None:
    """Check that the record can be saved, read again and summed up."""
    record.save(root.parent / "out")
    expect(RunRecord.load(root.parent / "out").tasks == record.tasks, "changed by writing and reading")
    for task in record.tasks:
        inside = root / f"{task.name}.jsonl"
        expect(inside.parent == root and ".." not in inside.parts, f"unsafe name {task.name!r}")
    record.valid_share(), record.train_seconds(), record.replayed(), record.learned()
    with suppress(KifuseError):
        record.summary()


def check_memory(memory: MemoryBuffer, root: Path) -> None:
    """Check that the memory holds whole examples, not too many of each task, and can be written."""
    expect(len(memory) == sum(len(memory.examples(name)) for name in memory.tasks), "size")
    for name in memory.tasks:
        expect(safe_name(name), f"unsafe name {name!r}")
        held = memory.examples(name)
        expect(
            len(held) > 0 and (memory.per_task is None or len(held) <= memory.per_task), "number of examples"
        )
        for example in held:
            check_example(example)
    expect(0 < memory.share <= 1 and 0 < memory.quota(1000) <= 1000, "share")
    again = MemoryBuffer.from_state(json.loads(json.dumps(memory.state(), allow_nan=False)))
    expect(again.state() == memory.state(), "changed by writing and reading")


def check_tensors(found: Any, root: Path) -> None:
    """Check that tensors are not larger than their file."""
    tensors, metadata = found
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    expect(held <= (root / "method.safetensors").stat().st_size, "larger than its file")
    check_texts(*tensors, *metadata, *metadata.values())


# Damage


def damage_files(root: Path, rng: Random, outside: Path) -> None:
    """Damage one file of a folder of JSON, or the folder tree."""
    if rng.random() < 0.2:
        mutations.mutate_tree(rng, root, outside)
        return
    if files := sorted(path for path in root.rglob("*") if path.is_file()):
        damage_file(rng.choice(files), rng)


def damage_file(path: Path, rng: Random) -> None:
    """Damage one JSON or JSON Lines file."""
    if not path.is_file():  # a pipe, which the damage before this one made
        return
    data = path.read_bytes()
    if rng.random() < 0.6:
        data = mutations.mutate_json(rng, data, lines=path.suffix == ".jsonl")
        if rng.random() < 0.8:
            path.write_bytes(data)
            return
    path.write_bytes(mutations.mutate_bytes(rng, data))


def damage_task_json(root: Path, rng: Random, outside: Path) -> None:
    """Damage only the settings of a task."""
    damage_file(rng.choice(sorted(root.glob("*/task.json"))), rng)


def damage_config(root: Path, rng: Random, outside: Path) -> None:
    """Damage a configuration, or nothing if the settings are already odd."""
    path = root / "run.yaml"
    if not path.is_file():
        return
    kind = rng.random()
    if kind < 0.08:
        mutations.mutate_tree(rng, root, outside)
    elif kind < 0.3:
        path.write_bytes(mutations.mutate_bytes(rng, path.read_bytes()))
    elif kind < 0.9:
        path.write_bytes(mutations.mutate_yaml(rng, path.read_bytes()))


def damage_tensors(root: Path, rng: Random, outside: Path) -> None:
    """Damage the header, the length of it, or the bytes of a safetensors file."""
    path = root / "method.safetensors"
    if not path.is_file():
        return
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    kind = rng.randrange(4)
    if kind == 0:
        header = mutations.mutate_json(rng, header, lines=False)
    elif kind == 1:
        value = json.loads(header)
        entry = value[rng.choice([key for key in value if key != "__metadata__"])]
        dtypes = ["F4", "F8_E8M0", "F8_E4M3", "U64", "C64", "F64", "I8", "BOOL", "x", "F6_E2M3"]
        shapes = [[2**63 - 1, 0], [2**40, 2**40], [-1], [0] * 100, [1] * 70, [2**64], [3], [1.5], ["2"]]
        entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
            [*dtypes, *shapes, [0, 2**62], [9, 1]]
        )
        if rng.random() < 0.3:
            value = {
                "empty": {"dtype": rng.choice(dtypes), "shape": rng.choice(shapes), "data_offsets": [0, 0]}
            }
            body = b""
        header = json.dumps(value).encode()
    elif kind == 2 or rng.random() < 0.5:
        path.write_bytes(mutations.mutate_bytes(rng, data))
        return
    else:
        mutations.mutate_tree(rng, root, outside)
        return
    length = (
        len(header) if rng.random() < 0.8 else rng.choice([0, 1, 2**63, 2**64 - 1, len(header) + 8, 10**8])
    )
    path.write_bytes(length.to_bytes(8, "little") + header + body)


TARGETS: dict[str, Target] = {
    "long_sequence": Target(sound.build_long_sequence, load_stream, check_stream),
    "cl_benchmark": Target(sound.build_cl_benchmark, load_stream, check_stream),
    "superni": Target(sound.build_superni, load_stream, check_stream),
    "jsonl pairs": Target(sound.build_pairs, load_stream, check_stream),
    "jsonl chat": Target(sound.build_chat, load_stream, check_stream),
    "task.json": Target(sound.build_task_json, load_stream, check_stream, damage_task_json),
    "formats": Target(formats.build, formats.load, check_formats, formats.damage),
    "rows": Target(formats.build_rows, formats.load_rows, check_formats, formats.damage_rows),
    "config": Target(sound.build_config, load_configuration, check_config, damage_config),
    "record.json": Target(sound.build_record, lambda root, rng: RunRecord.load(root), check_record),
    "memory.json": Target(sound.build_memory, load_memory, check_memory),
    "tensors": Target(
        sound.build_tensors,
        lambda root, rng: read_tensors(root / "method.safetensors"),
        check_tensors,
        damage_tensors,
    ),
}

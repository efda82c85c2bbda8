"""Damage files at random, from a seed: mutations of bytes, lines, JSON, YAML and folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.values import DEEP, LONG, NAMES, NUMBERS, TEXTS, YAML_VALUES


class Raw(str):
    """Text that is written into a JSON file as it is, for things that json.dumps would not write."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order; a key may occur twice."""


def odd_value(rng: Random) -> Any:
    """Draw a JSON value that fits nowhere."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return Raw(rng.choice(NUMBERS))
    if kind == 2:
        return rng.choice(NAMES)
    if kind == 3:
        half = Raw('"\\ud800"'), Raw('"a\\udc00b"'), Raw('"\\u0000"'), Raw('"\\ud83d\\ude00"'), Raw('"\\x"')
        return rng.choice(half)
    if kind == 4:
        deep = rng.choice([DEEP, 900, 450, 120, 60])
        nested = [Raw("[" * deep + "]" * deep), Raw('{"a":' * deep + "1" + "}" * deep), Raw("[" * deep)]
        return rng.choice(nested)
    plain: list[Any] = [None, True, False, 0, [], {}, [[]], [""], [None], [1], {"": ""}, ["a", "a"], [{}]]
    plain += [[f"label {i}" for i in range(20_000)], {f"key {i}": i for i in range(20_000)}]
    return rng.choice(plain)


def write_json(value: Any) -> str:
    """Write JSON with raw parts, and with keys that occur twice."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{_quoted(key)}: {write_json(item)}" for key, item in value) + "}"
    if isinstance(value, dict):
        return write_json(Pairs(value.items()))
    if isinstance(value, list):
        return "[" + ", ".join(map(write_json, value)) + "]"
    return json.dumps(value)


def _quoted(key: str) -> str:
    return str(key) if isinstance(key, Raw) else json.dumps(key)


def mutate_value(rng: Random, value: Any) -> Any:
    """Change one place of a JSON value: replace, remove, repeat, rename, reorder, wrap."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        item = stack.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            places.append((item, key))
            stack.append(item[key])
    if not places or rng.random() < 0.05:
        return odd_value(rng)
    parent, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind <= 2:
        parent[key] = odd_value(rng)
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        parent[key] = [parent[key]] if rng.random() < 0.5 else {"value": parent[key]}
    elif isinstance(parent, list):
        if kind == 5:
            parent.extend([parent[key]] * rng.choice([1, 2, 2000]))
        elif kind == 6:
            rng.shuffle(parent)
        else:
            parent.insert(key, odd_value(rng))
    elif kind == 5:
        parent[rng.choice([key.upper(), key + " ", "", key + "\u200b", rng.choice(NAMES)])] = parent.pop(key)
    elif kind == 6:
        parent[
            rng.choice([Raw('"\\ud800"'), "id", "task", "options", "messages", "instruction", "x" * 5000])
        ] = odd_value(rng)
    else:
        twice = Pairs(parent.items())
        twice.insert(rng.randrange(len(twice) + 1), (key, odd_value(rng)))
        return _exchange(value, parent, twice)
    return value


def _exchange(value: Any, old: Any, new: Any) -> Any:
    if value is old:
        return new
    if isinstance(value, dict):
        return {key: _exchange(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_exchange(item, old, new) for item in value]
    return value


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Damage a file without knowing what it holds."""
    return rng.choice(_BYTES)(rng, data)


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    odd = [
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n\n",
        b"\x1a",
        b"\\ud800",
        b"\t",
    ]
    odd += [
        b"\xf4\x90\x80\x80",
        b"x" * LONG,
        b" " * LONG,
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'"',
        b",",
        b"}",
        b"]",
    ]
    odd += [rng.randbytes(rng.choice([1, 4, 64])), "\u2028\u0085".encode(), b"9" * 5000, b"\x1b[31m"]
    return data[:at] + rng.choice(odd) + data[at:]


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _lines(rng: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        # do not repeat a line that another mutation made long: it would fill the machine's memory
        times = min(rng.choice([1, 3, 1000]), max(1, 32 * LONG // max(1, len(lines[at]))))
        lines[at:at] = [lines[at]] * times
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        rng.shuffle(lines)
    elif kind == 3:
        lines[at] = lines[at].rstrip(b"\r\n")
    elif kind == 4:
        lines.insert(at, b"\n" * rng.choice([1, 50]))
    else:
        lines[at] = b" " * rng.choice([1, 2, 7]) + lines[at]
    return b"".join(lines)


def _rewrite(rng: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return rng.choice(
        [
            b"",
            b" \n\t\n",
            b"\xef\xbb\xbf",
            b"\xef\xbb\xbf" + data,
            b"\xef\xbb\xbf" * 2 + data,
            text.encode("utf-16"),
            text.encode("utf-32"),
            data.replace(b"\n", b"\r\n"),
            data.replace(b"\n", b"\r"),
            data.replace(b"\n", b""),
            data.replace(b'"', b"'"),
            data + data,
            b"\0" * len(data),
            b"null",
            b"[" * DEEP + b"]" * DEEP,
        ]
    )


_BYTES: list[Callable[[Random, bytes], bytes]] = [_flip, _insert, _cut, _lines, _rewrite]


def mutate_json(rng: Random, data: bytes, *, lines: bool) -> bytes:
    """Change a value in a JSON file, or in one line of a JSON Lines file; the rest stays sound."""
    if not lines:
        return write_json(mutate_value(rng, json.loads(data))).encode("utf-8", "surrogatepass")
    rows = data.splitlines()
    at = rng.randrange(len(rows))
    rows[at] = write_json(mutate_value(rng, json.loads(rows[at]))).encode("utf-8", "surrogatepass")
    return b"\n".join(rows) + b"\n"


def yaml_bomb(rng: Random) -> str:
    """Write a few lines that would unfold to billions of values; the alias ``boom`` means all of them."""
    levels, wide = rng.choice([9, 12, 30]), rng.choice([2, 9])
    kind = rng.randrange(3)
    lines = ["a0: &a0 {x: 1}" if kind == 2 else "a0: &a0 [lol, lol]" if kind == 0 else "a0: &a0 {k: lol}"]
    for level in range(1, levels):
        inner = [f"*a{level - 1}"] * wide
        if kind == 0:
            value = f"[{', '.join(inner)}]"
        elif kind == 1:
            value = "{" + ", ".join(f"k{i}: {each}" for i, each in enumerate(inner)) + "}"
        else:
            value = f"{{<<: [{', '.join(inner)}]}}"
        lines.append(f"a{level}: &a{level} {value}")
    return "\n".join([*lines, f"boom: *a{levels - 1}"]) + "\n"


def mutate_yaml(rng: Random, data: bytes) -> bytes:
    """Change a line of a YAML file: its value, its key, its indentation, or add a bomb."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    key, colon, value = lines[at].partition(":")
    kind = rng.randrange(8)
    if kind <= 2:
        lines[at] = f"{key}: {rng.choice(YAML_VALUES)}"
    elif kind == 3:
        lines[at] = f"{key}x{colon}{value}"
    elif kind == 4:
        lines.insert(at, f"{key}: {rng.choice(YAML_VALUES)}")
    elif kind == 5:
        bomb = yaml_bomb(rng)
        if rng.random() < 0.3:
            root = "".join(f"- {line.partition(': ')[2]}\n" for line in bomb.splitlines())
            return root.encode()
        return (bomb + "\n".join(lines) + "\n").encode()
    elif kind == 6:
        indent = key[: len(key) - len(key.lstrip())]
        lines.insert(at, f"{indent}{rng.choice(YAML_VALUES)}: 1")
    else:
        extra = [
            "---",
            "...",
            "%YAML 9.9",
            "%YAML " + "9" * 5000 + ".1",
            "%TAG ! x",
            "<<: *x",
            "<<: 5",
            "\t",
            "? a",
        ]
        lines.insert(at, rng.choice(extra))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def overrides(rng: Random, keys: list[str]) -> list[str]:
    """Draw settings as the command line would give them."""
    odd = ["", "=", ".", "a..b", "training", "training.", ".training", "training.epochs.x", "method", "=1"]
    odd += [
        "__class__",
        "model.adapter.rank.x.y",
        "x" * 5000,
        "\ud800",
        "a\nb",
        "\x1b[31m",
        ".".join("a" * 2000),
    ]
    found = []
    for _ in range(rng.choice([1, 1, 2, 5])):
        key = rng.choice(keys) if rng.random() < 0.7 else rng.choice(odd)
        value = rng.choice(YAML_VALUES)
        if rng.random() < 0.1:
            # one line, so every alias is defined inside the value itself
            inner = "&b0 [lol, lol]"
            for level in range(1, 25):
                inner = f"&b{level} [{inner}, *b{level - 1}, *b{level - 1}]"
            value = inner
        found.append(key if rng.random() < 0.05 else f"{key}={value}")
    return found


def mutate_tree(rng: Random, root: Path, outside: Path) -> str:
    """Put something else in the place of a file or folder of the data; return what it is."""
    entries = sorted(path for path in root.rglob("*") if not path.is_symlink())
    files = [path for path in entries if path.is_file()]
    path = rng.choice(entries)
    kind = rng.choice(_TREE)
    if kind == "rename":
        target = path.with_name("x")
        name = rng.choice(NAMES) + (path.suffix if path.is_file() else "")
        try:
            target = path.parent / os.fsdecode(os.fsencode(name)) if "/" not in name else target
            os.rename(path, target)
        except (OSError, ValueError):
            return "rename: not possible here"
    elif kind == "bytes name":
        os.rename(path, os.path.join(os.fsencode(path.parent), b"\xff\xfe" + os.fsencode(path.suffix)))
    elif kind == "other case":
        twin = path.with_name(path.name.swapcase() if path.is_dir() else path.stem.swapcase() + path.suffix)
        if not twin.exists():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, twin)
    elif kind == "dot file":
        rng.choice(files).parent.joinpath(f"._{path.name}").write_bytes(b"\0\x05\x16\x07")
    elif kind == "remove":
        _remove(path)
    else:
        path = rng.choice(files) if kind in ("device", "fifo") else path
        was_folder = path.is_dir()
        _remove(path)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "empty file":
            path.touch()
        elif kind == "no rights":
            path.mkdir(0o000) if was_folder else path.touch(0o000)
        else:
            ends: dict[str, str | Path] = {"loop": path.name, "device": "/dev/zero", "dangling": "nowhere"}
            ends["link out"] = outside if was_folder else outside / "secret.txt"
            ends["link up"] = ".."
            path.symlink_to(ends[kind])
    return f"{kind}: {path.relative_to(root)}"


_TREE = ["rename", "rename", "bytes name", "other case", "dot file", "remove", "fifo", "folder", "empty file"]
_TREE += ["loop", "device", "dangling", "link out", "link up", "no rights"]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()

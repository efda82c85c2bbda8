"""Feed damaged files to everything in kifuse that reads one.

    python benchmarks/fuzz_inputs.py [--cases 10000] [--first 0] [--seed 0] [--targets config,tensors]
    python benchmarks/fuzz_inputs.py --only N --keep DIR

Each case writes sound files, damages them (fuzzing/mutations.py) and reads them. The files must load as a
valid object, or be refused with a KifuseError that names the file. There must be no other exception, no hang,
no written file and no memory bomb. A case depends only on the seed and its number: `--only N --keep DIR`
writes case N again and says how it ended. You can split a long run into pieces: `--first 4000 --cases 2000`
runs the cases 4000 to 5999. The exit code is 1 if a case failed.
"""

from __future__ import annotations

import argparse
import codecs
import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fuzzing.targets import TARGETS, damage_files, expect

from kifuse.errors import KifuseError

SECONDS = 10.0
"""How long a case may compute, in seconds."""
_PATIENCE = 12
MEGABYTES = 512
"""How much memory a case may add to the process, in megabytes."""


class Hang(BaseException):
    """The time of a case is over. It is a BaseException, so that no `except Exception` swallows it."""


class Outcome(NamedTuple):
    """How a case ended: `kind` is loaded, refused or failed."""

    target: str
    kind: str
    detail: str


# Running cases


def check_message(error: KifuseError, root: Path) -> None:
    """Check that a refusal names the file and the line, and can be printed anywhere."""
    message = str(error)
    message.encode("utf-8")
    expect(str(root) in message, f"names no file: {message:.300}")
    controls = [char for char in message if unicodedata.category(char) == "Cc" and char != "\n"]
    expect(not controls, f"control characters in the message: {message!r:.300}")
    expect(len(message) < 20_000, f"a message of {len(message)} characters")
    file = rf"{re.escape(str(root))}[^:']*\.jsonl(?P<line>:\d+)?(?=[: ])"
    if (named := re.search(file, message)) and not named["line"]:
        whole = (
            "no such",
            "cannot be read",
            "is empty",
            "expected a file. Put the file itself there.",
            "Task name",
            "already",
            "no task",
            "known layout",
            "which differ only",
            "expected one. Name one of them",
            ": row ",
            "holds no rows",
            " files, ",
            " parts, ",
        )
        expect(any(phrase in message for phrase in whole), f"names no line: {message:.300}")


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise Hang if the block computes longer than `seconds`, or waits twelve times as long."""

    def ring(*_: Any) -> None:
        raise Hang

    # Processor time is limited, since a busy machine may keep a case waiting. The clock ends endless waits.
    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, seconds),
        signal.SIGALRM: (signal.ITIMER_REAL, _PATIENCE * seconds),
    }
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def without_rights(root: Path) -> Iterator[None]:
    """If root runs this and the case took away the rights to a file, be the user nobody during the block."""
    places = (os.lstat(path).st_mode for path in root.rglob("*"))
    if os.geteuid() != 0 or all(mode & 0o777 for mode in places):
        yield
        return
    root.parents[1].chmod(0o755)
    codecs.lookup("utf-8-sig")  # the user nobody may not be allowed to read Python's own files
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    """List everything in a folder, with its size and time of change."""
    found = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            found.append((path, status.st_size if name in files else 0, status.st_mtime_ns))
    return sorted(found)


def prepare(seed: int, index: int, work: Path, names: list[str]) -> tuple[str, Path, Random]:
    """Write the files of a case; return its target, its folder, and the random generator to go on with."""
    name = names[index % len(names)]
    rng = Random(f"{seed}\n{index}\n{name}")  # noqa: S311 - test data, no secret
    root = work / "data"
    outside = work / "outside"
    root.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.txt").write_text("secret\n")
    target = TARGETS[name]
    target.build(root, rng)
    for _ in range(rng.choice([1, 1, 1, 2])):
        try:
            (target.damage or damage_files)(root, rng, outside)
        except (ValueError, IndexError, OSError, TypeError, AttributeError, UnicodeError, RecursionError):
            continue  # after the first damage the file may be too broken for a second one
    return name, root, rng


def run_case(seed: int, index: int, work: Path, names: list[str], seconds: float = SECONDS) -> Outcome:
    """Run one case in an empty folder.

    Returns:
        How it ended; this never raises.
    """
    name, root, rng = prepare(seed, index, work, names)
    target = TARGETS[name]
    before, peak = snapshot(work), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with alarm(seconds), without_rights(root):
            try:
                found = target.load(root, rng)
                kind, detail = "loaded", ""
            except KifuseError as error:
                check_message(error, root)
                kind, detail = "refused", str(error)
        expect(snapshot(work) == before, "reading changed a file")
        if kind == "loaded":
            with alarm(seconds):
                target.check(found, root)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
        expect(grown <= MEGABYTES, f"{grown} MB of memory")
    except KeyboardInterrupt:
        raise
    except Hang:
        return Outcome(
            name,
            "failed",
            f"no end after {seconds:g} s of computing, or {_PATIENCE * seconds:g} s of waiting",
        )
    except BaseException as error:
        return Outcome(name, "failed", f"{type(error).__name__}: {error!s:.500}")
    return Outcome(name, kind, detail)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", help=f"some of: {', '.join(TARGETS)}", default="")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument(
        "--keep", type=Path, help="write the files of failed cases, or of --only, to this folder"
    )
    options = parser.parse_args()
    names = [name.strip() for name in options.targets.split(",") if name.strip()] or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            parser.error(f"no target {name!r}")
    first, count = (options.first, options.cases) if options.only is None else (options.only, 1)
    counts: Counter[tuple[str, str]] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(first, first + count):
            work = Path(scratch) / f"case-{index}"
            # a case that is stuck in C code does not get the alarm: say where, and stop
            faulthandler.dump_traceback_later(5 * _PATIENCE * SECONDS, exit=True)
            outcome = run_case(options.seed, index, work, names)
            faulthandler.cancel_dump_traceback_later()
            counts[outcome.target, outcome.kind] += 1
            if outcome.kind == "failed" or options.only is not None:
                place = f"seed {options.seed} case {index} ({outcome.target})"
                print(f"{place}: {outcome.kind}: {outcome.detail!r:.600}", flush=True)
                if options.keep is not None:
                    shutil.rmtree(options.keep / f"case-{index}", ignore_errors=True)
                    prepare(options.seed, index, options.keep / f"case-{index}", names)
            shutil.rmtree(work, ignore_errors=True)
            if index % 500 == 499:
                failed = sum(count for (_, kind), count in counts.items() if kind == "failed")
                took = time.monotonic() - start
                print(
                    f"{index + 1 - first} cases, {failed} failed, {took:.0f} s", file=sys.stderr, flush=True
                )
    print(f"{'target':<16}{'loaded':>8}{'refused':>8}{'failed':>8}")
    for name in [*names, "all"]:
        row = [sum(n for (t, k), n in counts.items() if k == kind and name in (t, "all")) for kind in _KINDS]
        print(f"{name:<16}" + "".join(f"{count:>8}" for count in row))
    return int(any(kind == "failed" for _, kind in counts))


_NOBODY = 65534
_KINDS = ("loaded", "refused", "failed")


if __name__ == "__main__":
    sys.exit(main())

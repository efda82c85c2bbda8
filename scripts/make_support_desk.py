"""Write the support-desk task stream that ships with kifuse.

The hand-written fragments are in `scripts/support_desk/*.yaml`; this script composes them, with a fixed
seed, into the messages of five jobs. The same seed gives the same bytes.

Usage: python scripts/make_support_desk.py [--out FOLDER] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from support_desk.grammar import Bank  # noqa: E402
from support_desk.jobs import JOBS, Job, Maker  # noqa: E402

DEFAULT_OUT = HERE.parent / "src" / "kifuse" / "benchmarks" / "data" / "support_desk"
# Dev is drawn with the training fragments; test has fragments of its own.
SPLITS = (("train", "train", 192), ("dev", "train", 32), ("test", "test", 80))
MOST_TRIES = 500


def balanced(classes: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    """Return `count` class names, each as often as the others (give or take one), shuffled."""
    order = rng.sample(classes, len(classes))
    names = [order[i % len(order)] for i in range(count)]
    rng.shuffle(names)
    return names


def make_split(
    job: Job, side: str, split: str, count: int, seed: int, used: set[str]
) -> list[dict[str, str]]:
    """Compose one split; `used` holds every message written so far, in any job, and grows."""
    rng = random.Random(f"{seed}/{job.folder}/{split}")
    maker = Maker(Bank.read(side), rng)
    rows: list[dict[str, str]] = []
    for number, name in enumerate(balanced(job.classes, count, rng), start=1):
        for _ in range(MOST_TRIES):
            pair = job.compose(maker, name)
            if pair is not None and pair[0].lower() not in used:
                break
        else:
            raise SystemExit(f"{job.folder}/{split}: no new message for {name!r} in {MOST_TRIES} tries")
        used.add(pair[0].lower())
        rows.append({"id": f"{job.folder[3:]}-{split}-{number:03d}", "input": pair[0], "output": pair[1]})
    return rows


def make_all(out: Path, seed: int) -> None:
    """Write every job below `out`."""
    used: set[str] = set()
    for job in JOBS:
        folder = out / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        card = {
            "title": job.title,
            "about": job.about,
            "instruction": job.instruction,
            "labels": list(job.labels) if job.labels else None,
            "metric": job.metric,
        }
        write(folder / "task.json", json.dumps(card, indent=2) + "\n")
        for split, side, count in SPLITS:
            rows = make_split(job, side, split, count, seed, used)
            write(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, text: str) -> None:
    """Write with plain newlines on every system."""
    path.write_bytes(text.encode("utf-8"))


def main() -> None:
    """Read the command line and write the data."""
    parser = argparse.ArgumentParser(description="Write the support-desk task stream.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    make_all(options.out, options.seed)


if __name__ == "__main__":
    main()

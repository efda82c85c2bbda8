"""Count how many runs that are killed at random moments end bit-identical with one that is not killed.

    python benchmarks/crash_resume.py [--runs 100] [--seed 0] [--folder FOLDER]

The runs train a tiny model on three tasks with Recurrent-KIF, an optimizer of its own for memory steps, and
dropout. They save at every step. Each run is killed (`kill -9`) up to three times, at moments drawn evenly
over the time that a whole run takes. It is started again with the same command until it has finished. Then
scores, losses, counts, and the bytes of all adapters and predictions are compared.

    python benchmarks/crash_resume.py --scenes [--minutes 600] [--folder FOLDER]

instead kills a rollback, a refused task, a month of a callback and a comparison at each of their file
operations, or at as many evenly spread ones as the minutes allow; see `crash_scenes.py`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.crash_scenes import SCENES, kill_everywhere
from tests.crashes import Workplace, do_run, fork, kill_at_random, outcome, wait

RESULTS = Path(__file__).parent / "results" / "crash-resume.json"
SCENE_RESULTS = RESULTS.with_name("crash-scenes.json")
NEEDED = ("kifuse.running.runner", "transformers.trainer", "peft")
NEEDED_BY_SCENES = ("kifuse.learning.learner", "kifuse.comparing.grid_runs", "tests.learners", "tests.months")


def main() -> int:
    """Kill runs, let them go on, compare the results and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument(
        "--scenes", nargs="*", choices=SCENES, help="kill these at file operations; none: all"
    )
    parser.add_argument("--minutes", type=float, default=600, help="longest time for each scene")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="crash-resume-"))
    place = Workplace.build(folder)
    _import_once(*NEEDED, *(NEEDED_BY_SCENES if arguments.scenes is not None else ()))
    if arguments.scenes is not None:
        return scenes(arguments.scenes or list(SCENES), place, folder, arguments.minutes)
    began = time.monotonic()
    assert wait(fork(do_run(place.config(folder / "whole")))) == 0
    seconds = time.monotonic() - began
    expected = outcome(folder / "whole")
    draw = random.Random(arguments.seed)  # noqa: S311 - draws moments, not secrets
    same = kills = 0
    for number in range(1, arguments.runs + 1):
        output = folder / f"run-{number}"
        kills += len(kill_at_random(place, output, draw, seconds))
        alike = outcome(output) == expected
        same += alike
        if alike:
            shutil.rmtree(output)
        found = {"runs": number, "identical": same, "kills": kills, "seed": arguments.seed}
        RESULTS.write_text(json.dumps(found) + "\n", encoding="utf-8")
        left = (time.monotonic() - began) / number * (arguments.runs - number)
        print(
            f"{number}/{arguments.runs}: {same} identical, {kills} kills, about {left:.0f} s left", flush=True
        )
    print(f"{same} of {arguments.runs} runs came out identical after {kills} kills")
    return 0 if same == arguments.runs else 1


def _import_once(*modules: str) -> None:
    """Import modules once for all forks, and hide them from the garbage collector that each Trainer runs."""
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def scenes(names: list[str], place: Workplace, folder: Path, minutes: float) -> int:
    """Kill scenes at their file operations, and write the counts beside those of earlier scenes."""
    wrong = 0
    for name in names:

        def keep(found: dict[str, int], name: str = name) -> None:
            known = json.loads(SCENE_RESULTS.read_text("utf-8")) if SCENE_RESULTS.is_file() else {}
            SCENE_RESULTS.write_text(json.dumps({**known, name: found}, indent=1) + "\n", encoding="utf-8")

        found = kill_everywhere(name, place, folder, minutes, keep)
        print(f"{name}: {found}", flush=True)
        wrong += found["tried"] - found["identical"]
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

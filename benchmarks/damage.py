"""Damage each file that a learner, a run or a callback left, and see how the work goes on.

    python benchmarks/damage.py [--folder FOLDER] [--only learner run callback]

The work is Recurrent-KIF on a tiny model with three tasks. One after the other, every file in a folder is
changed by a bit, cut in half, deleted, emptied, or swapped with its earlier version. Then the work goes on:
the learner is loaded, scores its tasks and learns another one; the run that was stopped in its last task goes
on; the script of the next month trains. Each case ends in one of these ways:

    refused       an error of kifuse's own names the file or its folder
    the same      the result is that of the undamaged folder bit for bit: the file is not needed or made anew
    other         anything else: other scores or weights, or an error that is not kifuse's own
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.crashes import METHOD, Workplace
from tests.damages import DAMAGES
from tests.runs import TASKS, StopIn, Stopped

RESULTS = Path(__file__).parent / "results" / "damage.json"
PASSED_OVER = {".lock", ".lock.owner"}


def digest(*folders: Path) -> str:
    """Return a hash over the weights, states and predictions below some folders."""
    found = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".safetensors", ".jsonl") and file.is_file():
                found.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return found.hexdigest()


class Learner:
    """A learner of two tasks, which then learns the third."""

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def build(self, folder: Path) -> None:
        """Learn two tasks; the files after the first one are the earlier version."""
        from tests.learners import settings_of

        from kifuse import ContinualLearner

        settings = settings_of(self.place.folder / "model", self.place.folder / "stream")
        model = str(self.place.folder / "model")
        learner = ContinualLearner(model, METHOD, folder, settings=settings, progress=False)
        for task in TASKS[:2]:
            learner.learn(self.place.folder / "stream" / task)
            if task == TASKS[0]:
                shutil.copytree(folder, folder.with_name("learner-earlier"))

    def go_on(self, folder: Path) -> str:
        """Load the learner, score its tasks, and learn another one."""
        from kifuse import ContinualLearner

        learner = ContinualLearner.load(folder, progress=False)
        scores = learner.evaluate()
        report = learner.learn(self.place.folder / "stream" / TASKS[2])
        return json.dumps([scores, report.before, report.after, digest(learner.adapter)])


class Run:
    """A run that was stopped in its last task, and goes on."""

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def build(self, folder: Path) -> None:
        """Stop in the second task, then in the third; the files at the first stop are the earlier version."""
        from kifuse.page_refresh import run

        for task in TASKS[1:]:
            with contextlib.suppress(Stopped):
                run(self.place.config(folder), progress=StopIn(task))
            if task == TASKS[1]:
                shutil.copytree(folder, folder.with_name("run-earlier"))

    def go_on(self, folder: Path) -> str:
        """Let the run go on to its end."""
        from kifuse.page_refresh import run

        record = run(self.place.config(folder))
        scores = [[s.after, s.task, s.score] for s in record.scores]
        return json.dumps([scores, digest(folder / "adapters" / f"after-{len(TASKS)}")])


class Callback:
    """The state after two months, and the script of the third month."""

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def month(self, folder: Path, number: int) -> Any:
        """Train one month in a folder; the adapters are beside the state and are not damaged."""
        from tests.months import script
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.place.folder / "model")
        return script(tokenizer, folder, number, METHOD)

    def build(self, folder: Path) -> None:
        """Train two months."""
        work = folder.with_name("callback-work")
        for number in (1, 2):
            self.month(work, number)
            if number == 1:
                shutil.copytree(work / "state", folder.with_name("callback-earlier"))
        shutil.copytree(work / "state", folder)

    def go_on(self, folder: Path) -> str:
        """Train the third month with this state."""
        work = folder.with_name("callback-third")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder.with_name("callback-work") / "month-2", work / "month-2")
        shutil.copytree(folder, work / "state")
        weights = self.month(work, 3)
        return hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights.values())).hexdigest()


SCENES: dict[str, Callable[[Workplace], Any]] = {"learner": Learner, "run": Run, "callback": Callback}


def earlier_version(file: Path, whole: Path) -> Path | None:
    """Return the file's version in the earlier folder or in the state before; None if there is none."""
    name = file.relative_to(whole)
    for k in (3, 2):
        older = whole / name.as_posix().replace(f"after-{k}", f"after-{k - 1}").replace(
            f"/{k}.", f"/{k - 1}."
        )
        if older != file and older.is_file():
            break
    else:
        older = whole.with_name(f"{whole.name}-earlier") / name
    return older if older.is_file() and older.read_bytes() != file.read_bytes() else None


def ended(scene: Any, folder: Path, file: Path, expected: str) -> tuple[str, str]:
    """Let the work go on in a damaged folder; return how it ends, and the message."""
    from kifuse.errors import KifuseError

    try:
        found = scene.go_on(folder)
    except KifuseError as error:
        named = file.name in str(error) or file.parent.name in str(error)
        return ("refused" if named else "other"), str(error)
    except Exception as error:
        return "other", f"{type(error).__name__}: {error}"
    return ("the same", "") if found == expected else ("other", f"came to {found}, expected {expected}")


def main() -> int:
    """Damage files, let the work go on, compare the results and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--only", nargs="*", choices=SCENES, default=list(SCENES))
    arguments = parser.parse_args()
    top = (arguments.folder or Path(tempfile.mkdtemp(prefix="damage-"))).resolve()
    place = Workplace.build(top)
    summary: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    wrong = [each for each in summary.pop("other", []) if each[0] not in arguments.only]
    for name in arguments.only:
        scene, whole, copy = SCENES[name](place), top / name, top / f"{name}-copy" / name
        scene.build(whole)
        fresh = top / f"{name}-copy" / name

        def anew(whole: Path = whole, fresh: Path = fresh) -> Path:
            shutil.rmtree(fresh.parent, ignore_errors=True)
            shutil.copytree(whole, fresh)
            for beside in whole.parent.glob(f"{whole.name}-work"):
                shutil.copytree(beside, fresh.with_name(beside.name))
            return fresh

        expected = scene.go_on(anew())
        counts: dict[str, Counter[str]] = {damage: Counter() for damage in DAMAGES}
        files = [f for f in sorted(whole.rglob("*")) if f.is_file() and f.name not in PASSED_OVER]
        for number, file in enumerate(files, start=1):
            older = earlier_version(file, whole)
            for damage, inflict in DAMAGES.items():
                if damage == "an older version" and older is None:
                    continue
                anew()
                inflict(copy / file.relative_to(whole), older)
                how, said = ended(scene, copy, file, expected)
                counts[damage][how] += 1
                if how == "other":
                    wrong.append([name, file.relative_to(whole).as_posix(), damage, said[:500]])
                    print(wrong[-1], flush=True)
            print(f"{name}: {number} of {len(files)} files", flush=True)
        summary[name] = {"files": len(files), **{damage: dict(found) for damage, found in counts.items()}}
        RESULTS.write_text(json.dumps({**summary, "other": wrong}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

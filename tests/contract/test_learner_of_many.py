"""A learner under a launcher: two processes learn, score and take back as one, also after a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse import ContinualLearner
from kifuse.record.run_record import RunRecord
from tests.contract import learner_of_many
from tests.processes import end_of_two, run_two
from tests.runs import adapter, learned_files, write_stream

pytestmark = pytest.mark.usefixtures("quick")
MODULE = "tests.contract.learner_of_many"


@pytest.fixture(scope="module", params=["whole", "pieces"])
def told(
    request: pytest.FixtureRequest, tiny_folder_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int], list[str]]:
    """The folder of a learner that nothing interrupted, and of one that was killed and went on.

    Their model is whole in each process, or FSDP2 has cut it into pieces.
    """
    folder = tmp_path_factory.mktemp("learners")
    stream = write_stream(folder / "stream", test=9)
    given = (request.param, str(tiny_folder_llama), str(stream), str(folder))
    # the second process dies in the middle of the second task, without a word
    codes, outputs = end_of_two(MODULE, *given, "1", timeout=400)
    run_two(MODULE, *given, timeout=600)
    return folder, codes, outputs


def facts(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each of the two processes knew at the end."""
    return [json.loads((folder / f"{name}-{rank}.json").read_text("utf-8")) for rank in range(2)]


def test_two_processes_of_a_learner_agree_on_everything(told: tuple[Path, list[int], list[str]]):
    folder = told[0]
    first, second = facts(folder, "whole")
    assert first == second
    assert first["tasks"] == ["colour", "fruit"] and first["left"] == ["colour"]
    assert first["before"].keys() == first["scores"].keys() == {"colour", "fruit"}
    assert first["again"] == {"colour": first["before"]["colour"]}
    assert "100" in first["refused"]
    on_disk = json.loads((folder / "whole" / "record.json").read_text("utf-8"))
    assert {**first["record"], "seal": None} == {**on_disk, "seal": None}


def test_what_two_processes_wrote_is_gone_on_with_by_one(
    told: tuple[Path, list[int], list[str]], tiny_folder_llama: Path
):
    folder = told[0]
    learner = learner_of_many.open_learner(str(tiny_folder_llama), folder / "whole", False)
    first, _ = facts(folder, "whole")
    assert learner.tasks == ["colour"] and learner.evaluate() == first["again"]
    assert isinstance(ContinualLearner.load(folder / "whole", progress=False).adapter, Path)
    undone = folder / "whole" / "rolled-back"
    assert sorted(path.name for path in undone.iterdir()) == ["1", "2"]


def test_a_killed_pair_goes_on_in_the_middle_of_the_task_bit_for_bit(
    told: tuple[Path, list[int], list[str]],
):
    folder, codes, outputs = told
    assert codes[1] == -9 and codes[0] != 0, outputs
    log = (folder / "killed" / "log.txt").read_text("utf-8")
    assert re.search(r"fruit: going on after step \d of", log)
    for part in ("", "rolled-back/2"):
        whole, killed = (learned_files(folder / name / part) for name in ("whole", "killed"))
        assert whole and whole == killed
    for key in ("scores", "before", "watched", "answers", "again"):
        assert facts(folder, "killed")[0][key] == facts(folder, "whole")[0][key]


def test_two_processes_learn_score_and_repair_what_one_does(
    told: tuple[Path, list[int], list[str]], tiny_folder_llama: Path, tmp_path: Path
):
    folder = told[0]
    expected = learner_of_many.repaired(str(tiny_folder_llama), str(folder / "stream"), tmp_path / "one")
    found = RunRecord.load(folder / "repaired")
    assert [(s.after, s.task, s.score) for s in found.scores] == [
        (s.after, s.task, s.score) for s in expected.record.scores
    ]
    one, two = expected.record.tasks[1].repaired, found.tasks[1].repaired
    assert one and two and one["steps"] == two["steps"] == 2
    assert [row["colour"] for row in two["perplexity"]] == pytest.approx(
        [row["colour"] for row in one["perplexity"]], rel=1e-4
    )
    for k in (1, 2):
        torch.testing.assert_close(
            adapter(folder / "repaired", k), adapter(tmp_path / "one", k), rtol=1e-4, atol=1e-5
        )


def test_the_shell_learns_with_two_processes(tiny_folder_llama: Path, tmp_path: Path):
    stream = write_stream(tmp_path / "stream", test=5)
    settings = ["model.adapter.rank=2", "training.batch_size=4", "training.epochs=1", "model.precision=fp32"]
    codes, outputs = end_of_two(
        "kifuse",
        *("learn", str(tmp_path / "shop"), str(stream / "colour"), "--model", str(tiny_folder_llama)),
        *(word for setting in settings for word in ("--set", setting)),
        *("--run-after", f"echo done >> {tmp_path / 'hooked'}"),
        timeout=200,
    )
    assert codes == [0, 0], outputs
    assert "adapter: " in outputs[0] and "adapter: " not in outputs[1]
    assert (tmp_path / "hooked").read_text("utf-8") == "done\n"
    assert ContinualLearner.load(tmp_path / "shop", progress=False).tasks == ["colour"]

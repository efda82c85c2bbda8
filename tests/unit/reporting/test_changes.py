from __future__ import annotations

from pathlib import Path

from kifuse.reporting.changes import changes
from tests.unit.reporting.runs import make_record, write_predictions

TASKS = ["yelp", "cb", "copa"]


def make_run(folder: Path, name: str, lost: set[str], *, texts: int = 6) -> Path:
    """A run of three tasks that got everything right and, at the end, loses the inputs named."""
    run = folder / name
    make_record(name, tasks=TASKS).save(run)
    for number, task in enumerate(TASKS, start=1):
        inputs = [f"{task} {i}" for i in range(texts)]
        write_predictions(run, number, task, dict.fromkeys(inputs, True))
        write_predictions(run, len(TASKS), task, {text: text not in lost for text in inputs})
    return run


def test_lost_is_right_when_learned_and_wrong_at_the_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sequential", {"yelp 1", "cb 2"})
    write_predictions(run, 1, "yelp", {f"yelp {i}": i != 3 for i in range(6)})  # never right: not lost
    write_predictions(run, 3, "yelp", {f"yelp {i}": i not in (1, 3) for i in range(6)})
    found = changes(run, 20)
    assert {change.input for change in found.lost} == {"yelp 1", "cb 2"}
    assert (found.lost_count, found.kept_count) == (2, 9)
    assert {change.input for change in found.kept}.isdisjoint({"yelp 1", "yelp 3", "cb 2"})
    [answer] = next(change for change in found.lost if change.input == "yelp 1").answers
    assert answer is not None
    assert (answer.learned, answer.final) == ("good", "bad after 3")
    assert found.notes == []


def test_what_the_compared_method_kept_comes_first(tmp_path: Path) -> None:
    everything = {f"{task} {i}" for task in TASKS for i in range(6)}
    baseline = make_run(tmp_path, "sequential", everything)
    method = make_run(tmp_path, "kif", everything - {"cb 4", "yelp 5"})
    found = changes([baseline, method], 3)
    assert {change.input for change in found.lost[:2]} == {"cb 4", "yelp 5"}
    assert all(change.answers[1] is not None and change.answers[1].kept for change in found.lost[:2])
    assert found.lost[2].answers[1] is not None
    assert found.lost[2].answers[1].lost


def test_the_tasks_take_turns(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sequential", {f"{task} {i}" for task in TASKS for i in range(6)})
    assert [change.task for change in changes(run, 4).lost] == ["yelp", "cb", "yelp", "cb"]


def test_the_choice_is_always_the_same(tmp_path: Path) -> None:
    lost = {f"yelp {i}" for i in range(40)}
    one = make_run(tmp_path / "a", "sequential", lost, texts=50)
    other = make_run(tmp_path / "b", "sequential", lost, texts=50)
    first = changes(one, 5).lost
    assert first == changes(other, 5).lost
    assert len(first) == 5
    assert changes(one, 9).lost[:5] == first


def test_an_example_that_comes_twice_is_two_examples(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sequential", {"yelp 1"})
    for after in (1, 3):
        file = run / "predictions" / f"after-{after}" / "yelp.jsonl"
        file.write_text(file.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert changes(run).lost_count == 2


def test_a_missing_file_is_a_note_and_the_other_tasks_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sequential", {"yelp 1", "cb 2"})
    (run / "predictions" / "after-1" / "yelp.jsonl").unlink()
    found = changes(run)
    assert [change.input for change in found.lost] == ["cb 2"]
    [note] = found.notes
    assert "yelp.jsonl" in note
    assert "no such file" in note


def test_a_damaged_file_is_a_note_with_its_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sequential", {"cb 2"})
    file = run / "predictions" / "after-3" / "yelp.jsonl"
    file.write_text(file.read_text(encoding="utf-8").splitlines()[0] + '\n{"input": "cut', encoding="utf-8")
    found = changes(run)
    assert [change.input for change in found.lost] == ["cb 2"]
    assert "yelp.jsonl:2: not readable" in found.notes[0]


def test_a_folder_without_a_run_is_a_note(tmp_path: Path) -> None:
    baseline = make_run(tmp_path, "sequential", {"yelp 1"})
    found = changes([baseline, tmp_path / "nothing"])
    assert found.lost[0].answers[1] is None
    assert "holds no run" in found.notes[0]
    assert changes(tmp_path / "nothing").lost == []
    assert changes([]).notes == ["no run folder was given"]


def test_runs_that_cannot_forget_say_so(tmp_path: Path) -> None:
    make_record(tasks=["yelp"]).save(tmp_path / "one")
    make_record("joint", data_class="all data").save(tmp_path / "joint")
    assert "has one task" in changes(tmp_path / "one").notes[0]
    assert "trained on all tasks at once" in changes(tmp_path / "joint").notes[0]


def test_examples_that_only_one_file_has_are_counted_in_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sequential", {"yelp 1"})
    write_predictions(run, 3, "yelp", {"yelp 1": False, "yelp 2": True})
    found = changes(run)
    assert found.lost_count == 1
    assert "share only 2 examples" in found.notes[0]

"""The page: complete, self-contained, safe whatever the text in it, and honest about what it lacks."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kifuse.errors import RunError
from kifuse.page_refresh import PageRefresh
from kifuse.record.run_record import RENDERED, RunRecord
from kifuse.reporting.page import comparison_page, refresh_report, run_page, write_report
from kifuse.reporting.run_groups import Run, open_run, open_runs
from kifuse.running.progress import Progress
from tests.unit.reporting.measured_runs import (
    HOSTILE,
    hostile_record,
    kif_record,
    rounds_record,
    write_run,
)
from tests.unit.reporting.runs import make_record, write_predictions

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element that begins must end, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: dict[str, str] = {"script": "", "style": ""}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("hostile")
    record = hostile_record()
    record.save(folder)
    for after in (1, 2, 3):
        for task in record.tasks[: min(after, 2)]:
            right = {f"{HOSTILE} {i}": (i + after) % 2 == 0 for i in range(4)}
            write_predictions(folder, after, task.name, right)
    pieces = [[HOSTILE.replace("\ud800", ""), special] for special in (False, True)]
    rendered = {task.name: {"prompt": pieces, "target": pieces, "cut": True} for task in record.tasks}
    (folder / RENDERED).write_text(json.dumps(rendered), encoding="utf-8")
    return Page(run_page(open_run(folder)))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Page:
    record = hostile_record()
    return Page(
        comparison_page([Run(record), Run(make_record()), Run(kif_record())], tmp_path_factory.mktemp("c"))
    )


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Page:
    return request.getfixturevalue(request.param)


BOTH = pytest.mark.parametrize("page", ["hostile", "comparison"], indirect=True)


@BOTH
def test_hostile_text_is_shown_as_text(page: Page):
    assert '<script>alert("1")</script>' in page.text
    assert '<script>alert("1")<script>' in page.text  # the name of a task
    assert "{{ 7 * 7 }}" in page.text
    assert page.all("img") == []
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert "alert" not in page.inside["script"]


@BOTH
def test_a_page_loads_nothing_and_links_nowhere_else(page: Page):
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag}> has {name}"
            assert name not in ("src", "srcset", "action", "style", "xlink:href")
            if name == "href":
                assert value == "data:," or str(value).startswith(("#", "./"))
    assert not re.search(r"url\(|@import|https?:", page.inside["style"])
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(|https?:", page.inside["script"])


@BOTH
def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(page: Page):
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


@BOTH
def test_names_in_a_page_are_unique_and_lead_somewhere(page: Page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        href = str(link["href"])
        assert not href.startswith("#") or href[1:] in ids
    for _, attributes in page.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


@BOTH
def test_every_drawing_has_a_name(page: Page):
    drawings = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert drawings
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)


@BOTH
def test_headings_go_down_one_level_at_a_time(page: Page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_page_has_every_section_and_picture(tmp_path: Path):
    page = Page(run_page(open_run(write_run(tmp_path, kif_record()))))
    for part in ("summary", "scores", "units", "training", "examples", "use", "settings"):
        assert part in page.ids()
    for picture in ("score-matrix", "forgetting", "importance", "history-after-drift", "fused-units", "loss"):
        assert f"figure-{picture}" in page.ids()
    for text in (
        "After five tasks the model scores 70.0",
        "Lost (",
        "Gained (",
        "PeftModel",
        "learning_rate",
    ):
        assert text in page.text
    assert "0" * 64 in page.text  # hashes in full


def test_the_numbers_of_a_picture_are_on_the_page(tmp_path: Path):
    page = Page(run_page(Run(rounds_record(tasks=["a", "b"]))))
    assert "Numbers of Training loss" in page.text
    tips = [attributes["data-tip"] for _, attributes in page.elements if "data-tip" in attributes]
    assert "1 a: 90 at 1 tasks learned" in tips
    assert "2 b: shared 10.0%" in tips


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (make_record("sequential"), "sequential measured none in this run."),
        (make_record("sequential"), "Old and new weights were not fused"),
        (
            make_record("joint", data_class="all data"),
            "All tasks were trained at once, so no task came after",
        ),
        (make_record(tasks=["a"]), "There is only one task"),
        (make_record(status="running", scores=[]), "this page is written again after each task"),
        (make_record().model_copy(update={"tasks": [], "scores": []}), "No task has been learned yet."),
    ],
    ids=["no importance", "no fusion", "joint", "one task", "running", "no task"],
)
def test_what_is_missing_is_said_in_a_sentence(record: RunRecord, said: str):
    assert said in Page(run_page(Run(record))).text


def test_a_learners_history_is_told():
    scores = {"before": {"a": 90.0}, "after": {"a": 70.0, "b": 88.0}}
    entry = {
        "event": "refused",
        "when": "2026-01-01",
        "task": "b",
        "reason": "it cost a 20.0 points",
        **scores,
    }
    page = Page(run_page(Run(make_record(tasks=["a"], lineage=[entry]))))
    assert "refused b 88.0 a \u221220.0 it cost a 20.0 points" in page.text


def test_the_report_is_written_into_the_runs_folder_and_again_the_same(tmp_path: Path):
    write_run(tmp_path, kif_record())
    file = write_report(tmp_path)
    first = file.read_bytes()
    assert file == tmp_path / "report.html"
    write_report(tmp_path)
    assert file.read_bytes() == first


def test_a_folder_without_a_run_is_no_report(tmp_path: Path):
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_page_that_fails_never_costs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path, kif_record())
    assert refresh_report(tmp_path) is None
    assert (tmp_path / "report.html").is_file()

    def fail(run: Run) -> str:
        raise ZeroDivisionError("a mistake\nof ours")

    monkeypatch.setattr("kifuse.reporting.page.run_page", fail)
    assert refresh_report(tmp_path) == "report.html could not be written: a mistake of ours"


def test_a_page_is_drawn_when_a_run_says_so_and_all_else_is_passed_on(tmp_path: Path):
    class Told(Progress):
        said: tuple[str, ...] = ()

        def say(self, text: str) -> None:
            self.said = (*self.said, text)

        def saved(self, folder: Path) -> str | None:
            return f"seen {folder.name}"

    inner = Told()
    refresh = PageRefresh(inner)
    refresh.say("a note")
    refresh.method_says("a", 1, "fused", True)
    assert inner.said == ("a note",)
    assert "no run" in str(refresh.saved(tmp_path))
    write_run(tmp_path / "run", kif_record())
    assert refresh.saved(tmp_path / "run") == "seen run"
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_comparison_links_the_pages_of_its_runs(tmp_path: Path):
    for name in ("first run", "b"):
        write_run(tmp_path / "runs" / name, kif_record())
    write_report(tmp_path / "runs" / "first run")
    runs = open_runs([tmp_path / "runs" / "first run", tmp_path / "runs" / "b"])
    page = Page(comparison_page(runs, tmp_path))
    links = [str(link["href"]) for link in page.all("a") if str(link["href"]).startswith("./")]
    assert links == ["./runs/first%20run/report.html"]


def test_fifteen_tasks_of_a_large_model_stay_a_small_file():
    tasks = [f"task{i}" for i in range(15)]
    record = kif_record(tasks=tasks)
    assert len(run_page(Run(record))) < 2_000_000

"""A real browser, and the pages that it opens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kifuse.reporting.page import comparison_page, run_page
from kifuse.reporting.run_groups import Run, open_run, open_runs
from tests.unit.reporting.measured_runs import hostile_record, kif_record, rounds_record, write_run
from tests.unit.reporting.runs import make_record

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start Chromium without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (kifuse[dev])"
    )
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)"
        )
    with playwright.sync_playwright() as started:
        # the pages are our own, and Chromium's sandbox does not work in a container
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make pages of all kinds, by name."""
    folder = tmp_path_factory.mktemp("pages")
    long = [f"a task with quite a long name, number {i}" for i in range(1, 16)]
    records = {
        "kif": kif_record(),
        "rounds": rounds_record(tasks=["a", "b", "c"]),
        "many": kif_record(tasks=long),
        "plain": make_record("sequential"),
        "running": make_record("kif", status="running", scores=[]),
        "hostile": hostile_record(),
    }
    made = {}
    for name, record in records.items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(run_page(open_run(write_run(folder / name, record))), encoding="utf-8")
    runs = open_runs([folder / "plain", folder / "kif", folder / "rounds"])
    runs += [
        Run(kif_record(drop=12.0, seeds={"training": 1})),
        Run(make_record("joint", data_class="all data")),
    ]
    made["comparison"] = folder / "comparison.html"
    made["comparison"].write_text(comparison_page(runs, folder), encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for pictures of the pages: $KIFUSE_SCREENSHOTS, or one that pytest removes."""
    wanted = os.environ.get("KIFUSE_SCREENSHOTS")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Visit:
    """An open page, with all errors that occurred on it."""

    def __init__(self, context: Any, file: Path) -> None:
        self.complaints: list[str] = []
        self.asked_for: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(file.as_uri())


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Return a function that opens a page by its name; its other arguments go to the browser's context."""
    contexts = []

    def open_page(name: str, *, width: int = 1280, **options: Any) -> Visit:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        return Visit(contexts[-1], pages[name])

    yield open_page
    for context in contexts:
        context.close()

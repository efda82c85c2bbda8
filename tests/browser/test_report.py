"""The report in a real browser: it loads, is drawn, fits, works by keyboard, and everybody can read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGES = ["kif", "rounds", "many", "plain", "running", "hostile", "comparison"]
ALL = pytest.mark.parametrize("name", PAGES)
PHONE, DESK = 390, 1280

# What a drawing may not be: without size, without shapes, or with text beyond its edges.
BROKEN = """() => [...document.querySelectorAll("svg.drawing")].filter((svg) => {
  const box = svg.getBoundingClientRect();
  if (!svg.checkVisibility()) return false;
  const shapes = svg.querySelectorAll("path, rect, circle, line").length;
  const out = [...svg.querySelectorAll("text")].some((text) => {
    const at = text.getBoundingClientRect();
    return at.left < box.left - 6 || at.right > box.right + 6
      || at.top < box.top - 6 || at.bottom > box.bottom + 6;
  });
  return box.width < 60 || box.height < 20 || !shapes || out;
}).map((svg) => svg.getAttribute("aria-label"))"""


@ALL
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_loads_alone_without_a_complaint_fits_and_has_every_figure_drawn(
    visit: Callable[..., Any], screenshots: Path, name: str, width: int
):
    visited = visit(name, width=width, color_scheme="dark" if name == "rounds" else "light")
    page = visited.page
    page.screenshot(path=screenshots / f"{name}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BROKEN) == []
    for panel in range(page.locator("[role=tab]").count()):
        page.locator("[role=tab]").nth(panel).click()
        assert page.evaluate(BROKEN) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert visited.complaints == []
    assert len([url for url in visited.asked_for if not url.startswith("data:")]) == 1


def test_every_picture_of_a_run_is_on_its_page(visit: Callable[..., Any]):
    page = visit("kif").page
    assert page.locator("table.heat td.marked").count() == 5
    assert page.locator("#figure-forgetting svg.drawing").count() == 5
    # six panels of layers (encoder, decoder, cross-attention; query, value) and their scale
    assert page.locator("#figure-importance svg.drawing").count() == 7
    assert page.locator("#figure-importance .cells path").count() > 6
    assert page.locator("#figure-fused-units rect[data-tip]").count() == 16
    assert page.locator("#figure-loss .wide .rug").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["kif", "plain", "comparison"])
def test_axe_finds_nothing(visit: Callable[..., Any], name: str, scheme: str):
    reason = "axe-playwright-python is not installed (kifuse[dev])"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    page = visit(name, color_scheme=scheme).page
    if name == "comparison":
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


def test_tabs_work_by_keyboard(visit: Callable[..., Any]):
    page = visit("kif").page
    tabs = page.locator("#examples [role=tab]")
    panels = page.locator("#examples [role=tabpanel]")
    assert [tabs.nth(i).inner_text() for i in range(3)] == ["Lost (12)", "Kept (24)", "Gained (8)"]

    def shown() -> list[bool]:
        return [panels.nth(i).is_visible() for i in range(3)]

    def selected() -> list[str | None]:
        return [tabs.nth(i).get_attribute("aria-selected") for i in range(3)]

    assert shown() == [True, False, False]
    tabs.nth(0).focus()
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowRight", 0),
        ("ArrowLeft", 2),
        ("Home", 0),
        ("End", 2),
    ):
        page.keyboard.press(key)
        assert shown() == [i == place for i in range(3)]
        assert selected() == ["true" if i == place else "false" for i in range(3)]
        assert page.evaluate("document.activeElement.textContent") == tabs.nth(place).inner_text()
    # one stop of the tab key for all tabs, then what they show
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tabpanel"


def test_tables_sort_by_keyboard_and_gaps_stay_last(visit: Callable[..., Any]):
    page = visit("comparison").page
    methods = page.locator("#methods table.sheet").first
    head = methods.locator("th", has_text="BWT")

    def column() -> list[str]:
        return methods.locator("tbody tr").evaluate_all(
            "rows => rows.map((row) => row.cells[3].firstChild.textContent.trim())"
        )

    before = column()
    assert before[-1] == "\u2013"
    numbers = sorted((v for v in before if v != "\u2013"), key=lambda v: float(v.replace("\u2212", "-")))
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), column()) == ("ascending", [*numbers, "\u2013"])
    page.keyboard.press("Space")
    assert (head.get_attribute("aria-sort"), column()) == ("descending", [*numbers[::-1], "\u2013"])
    page.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), column()) == (None, before)


def test_totals_stay_below_what_is_sorted(visit: Callable[..., Any]):
    page = visit("kif").page
    page.locator("#training th button", has_text="steps").click()
    assert page.locator("#training table tfoot td").first.inner_text() == "all"


def test_the_theme_is_the_systems_until_chosen_and_then_kept(visit: Callable[..., Any]):
    page = visit("kif", color_scheme="dark").page
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_role("button", name="Light colours").press("Enter")
    light = page.evaluate(colour)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    page.reload()
    assert page.evaluate(colour) == light
    assert page.get_by_role("button", name="Dark colours").is_visible()


def test_without_scripts_everything_is_still_there(visit: Callable[..., Any]):
    page = visit("kif", java_script_enabled=False).page
    assert page.locator("[data-tab]").count() > 3
    for i in range(page.locator("[data-tab]").count()):
        assert page.locator("[data-tab]").nth(i).is_visible()
    assert not page.locator("#theme").is_visible()


def test_print_is_light_and_shows_every_tab(visit: Callable[..., Any]):
    page = visit("kif", color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    for i in range(page.locator("[role=tabpanel]").count()):
        assert page.locator("[role=tabpanel]").nth(i).is_visible()


def test_pointing_at_a_cell_or_a_dot_tells_its_number(visit: Callable[..., Any]):
    page = visit("kif").page
    tip = page.locator("#tip")
    page.locator("#figure-forgetting circle.dot").nth(1).hover()
    assert tip.inner_text() == "1 yelp: 80 at 2 tasks learned"
    cells = page.locator("#figure-importance .cells").nth(1)
    x, y, width, height, *_ = map(float, str(cells.get_attribute("data-grid")).split())
    cells.scroll_into_view_if_needed()
    svg = page.locator("#figure-importance svg.drawing").nth(1)
    scale = svg.bounding_box()["width"] / float(svg.get_attribute("width"))
    # the second row and the third column of the second panel
    svg.hover(position={"x": (x + 2.5 * width) * scale, "y": (y + 1.5 * height) * scale})
    rows = page.locator("#figure-importance .numbers tbody tr")
    expected = rows.filter(has_text="encoder, value").nth(1).locator("td").nth(4).text_content()
    assert tip.inner_text() == f"2 amazon, layer 2: {expected}"


def test_code_can_be_copied(visit: Callable[..., Any]):
    page = visit("kif", permissions=["clipboard-read", "clipboard-write"]).page
    page.locator("#use .copy").press("Enter")
    page.wait_for_function("document.querySelector('#use .copy').textContent !== 'Copy'")
    assert "PeftModel" in page.evaluate("navigator.clipboard.readText()")


def test_hostile_text_does_nothing(visit: Callable[..., Any]):
    visited = visit("hostile")
    assert visited.page.locator("img").count() == 0
    assert visited.page.locator("script").count() == 1
    assert "<script>" in visited.page.locator("main").inner_text()
    # even a script that got in would not run
    visited.page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.harmed = true";
      document.body.append(script);
    }""")
    assert visited.page.evaluate("window.harmed") is None


def test_a_link_to_a_hidden_tab_opens_it(visit: Callable[..., Any]):
    page = visit("kif").page
    assert not page.locator("#figure-moved").is_visible()
    page.evaluate("location.hash = 'figure-moved'")
    page.wait_for_selector("#figure-moved", state="visible")

"""Layout, the strip of numbers, colours, words, and a browser without scripts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.page_pictures import take
from tests.service.conftest import Running
from tests.service.page.conftest import Visit, problem
from tests.service.pictures import decoded, opened

WIDTHS = (320, 390, 768, 1280, 1920)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_width_of_the_page_needs_sideways_scrolling(browser: Any, server: Running, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 740})
    visit = Visit(context.new_page(), server.url)
    visit.draw()
    background = visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(","))
    assert (brightness > 384) == (scheme == "light")
    for summary in visit.page.locator("summary").all():
        summary.click()
    assert page_widths(visit) == list(WIDTHS)
    visit.page.select_option("#group", label="sky")  # its class names are long
    visit.wait_for_pictures(5, ("sky",))
    assert page_widths(visit) == list(WIDTHS)
    visit.page.click("#burst")
    visit.page.wait_for_selector(".tile.done >> nth=15")
    assert page_widths(visit) == list(WIDTHS)
    cut = "e => [...e.children].some((part) => part.scrollWidth > part.clientWidth + 1)"
    assert not any(tile.evaluate(cut) for tile in visit.page.locator(".tile").all())
    context.close()


def page_widths(visit: Visit) -> list[int]:
    """What the page takes at each of WIDTHS."""
    taken = []
    for width in WIDTHS:
        visit.page.set_viewport_size({"width": width, "height": 740})
        taken.append(visit.page.evaluate("() => document.documentElement.scrollWidth"))
    return taken


EDGE = """(e, what) => {
    const light = (text) => {
        const parts = text.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    let behind = e.parentElement;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const [one, other] = [light(getComputedStyle(e)[what]), light(getComputedStyle(behind).backgroundColor)];
    return Math.max(one, other) / Math.min(one, other);
}"""


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_edges_of_controls_stand_out(browser: Any, server: Running, scheme: str) -> None:
    """At 3:1, as WCAG 1.4.11 wants it; axe looks at text only."""
    context = browser.new_context(color_scheme=scheme)
    visit = Visit(context.new_page(), server.url)
    visit.draw()
    visit.page.click("#drawing summary")
    edges = dict.fromkeys(
        ("#seed", "#quality", "#dice", "#share", "#classes span >> nth=1", ".file"), "borderTopColor"
    )
    edges |= {".canvas .frame": "outlineColor", "#finished .frame >> nth=0": "outlineColor"}
    faint = {edge: visit.page.locator(edge).evaluate(EDGE, what) for edge, what in edges.items()}
    assert {edge: ratio for edge, ratio in faint.items() if ratio < 3} == {}
    context.close()


def test_what_is_asked_for_comes_into_view_on_a_phone(browser: Any, server: Running) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 740}, reduced_motion="reduce")
    visit = Visit(context.new_page(), server.url)
    visit.draw()
    assert visit.page.evaluate("() => scrollY") == 0  # not before it is asked for
    for button, shown in (("#generate", "#models"), ("#burst", "#bursts")):
        visit.page.click(button)
        visit.page.wait_for_function("() => scrollY > 0")
        assert 0 <= visit.page.locator(shown).bounding_box()["y"] <= 740 - 160
        visit.page.evaluate("() => scrollTo(0, 0)")
    context.close()


def test_controls_are_large_enough_for_a_finger(visit: Visit) -> None:
    """24 pixels, as WCAG 2.5.8 wants it; a label counts with its button."""
    visit.draw()
    visit.page.click("#drawing summary")
    for target in (".download >> nth=0", ".animation >> nth=0", "label:has(#pen)", "label:has(#unnamed)"):
        assert visit.page.locator(target).bounding_box()["height"] >= 24


def test_the_numbers_of_the_service_stay_when_it_rests(visit: Visit) -> None:
    visit.draw()
    visit.wait_for_text("#server", "rows a step, last busy")
    tiles = {label: value for value, label in (text.split("\n") for text in visit.texts("#server div"))}
    assert float(tiles["images/s, last busy"]) > 0
    assert float(tiles["rows a step, last busy"]) >= 1
    assert int(tiles["images so far"]) >= 2
    assert int(visit.page.inner_text("#spark-top")) > 0


def test_latencies_stand_by_model(visit: Visit) -> None:
    visit.draw()
    visit.page.click("#generate")
    visit.page.wait_for_function("() => document.getElementById('own').textContent.match(/of 2/g)?.length === 2")
    lines = visit.texts("#own p")
    assert sorted(line.partition(":")[0] for line in lines) == ["dit", "unet"]
    assert all("slowest" in line and "p95" not in line for line in lines)
    assert visit.page.locator("#spark polyline").count() == 2


def test_the_strip_fills_its_width_where_metrics_have_another_port(visit: Visit) -> None:
    visit.answer("metrics", 404, problem(404, "no such path"))
    visit.draw()
    visit.page.wait_for_selector("#server[hidden]", state="attached")
    assert visit.page.locator("#metrics-link").is_hidden()
    strip, figure = (visit.page.locator(f".strip{part}").bounding_box()["width"] for part in ("", " figure"))
    assert figure > 0.9 * strip


def test_links_and_commands_are_copied_and_the_notice_says_so(browser: Any, server: Running) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    visit = Visit(context.new_page(), server.url)
    visit.draw()
    visit.page.click("#share")
    visit.wait_for_text("#notice", "Link copied.")
    assert visit.page.evaluate("() => navigator.clipboard.readText()") == visit.page.url
    visit.page.click("text=The form as commands")
    visit.page.click("#copy")
    visit.wait_for_text("#notice", "Commands copied.")
    visit.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    visit.page.click("#share")
    visit.wait_for_text("#notice", "Copy the link from the address bar.")
    context.close()


def test_the_words_have_tooltips(visit: Visit) -> None:
    visit.draw()
    visit.wait_for_text("#server", "rows a step")
    for thing in ("label[for=sampler]", "label[for=guidance]", "#server div:has-text('rows a step')"):
        assert len(visit.page.locator(thing).get_attribute("title")) > 40


def test_the_choice_can_be_seen_in_forced_colours(browser: Any, server: Running) -> None:
    context = browser.new_context(forced_colors="active")
    visit = Visit(context.new_page(), server.url)
    visit.draw()
    checked, other = (
        visit.page.locator(f"#classes input{state} + span >> nth=0").evaluate(
            "e => getComputedStyle(e).backgroundColor"
        )
        for state in (":checked", ":not(:checked)")
    )
    assert checked != other
    bar = visit.page.locator("progress >> nth=0")
    bar.evaluate("e => (e.value = 0.5)")
    row = decoded(bar.screenshot(animations="disabled"))[2, :, :3].astype(int)
    assert np.abs(row[len(row) // 4] - row[3 * len(row) // 4]).sum() > 100
    context.close()


def test_without_script_the_page_says_what_to_do(browser: Any, server: Running) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.url)
    assert "This page needs JavaScript." in page.inner_text("body")
    assert page.locator("main").is_hidden()
    for name in ("description", "og:title", "og:description"):
        assert page.locator(f"meta[name='{name}'], meta[property='{name}']").get_attribute("content")
    context.close()


def test_the_pictures_of_the_documents_are_taken(browser: Any, server: Running, tmp_path: Path) -> None:
    take(browser, server.url, tmp_path)
    page, burst = (opened((tmp_path / name).read_bytes()) for name in ("page.png", "burst.png"))
    assert (page.width, burst.width) == (920, 1712)  # as in docs/
    assert page.height > 1000  # the film lies below the first screen
    assert len(burst.getcolors() or ()) > 100  # there are pictures in it

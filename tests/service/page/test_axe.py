"""axe-core finds nothing that hinders a reader, in any state of the page and in both colour schemes."""

from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import Running
from tests.service.page.conftest import Visit, problem

axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
SCRIPT = (Path(str(axe.__file__)).parent / "axe.min.js").read_text()


def findings(visit: Visit) -> list[str]:
    """Rules and elements."""
    visit.page.evaluate(SCRIPT)
    found = visit.page.evaluate("() => axe.run()")["violations"]
    return [f"{rule['id']}: {node['html'][:100]}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing(browser: Any, server: Running, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    visit, held = Visit(context.new_page(), server.url), []
    visit.page.route("**/generate", lambda route: held.append(route), times=2)
    visit.open()
    visit.wait_for_text("#status", "denoising")
    assert findings(visit) == []  # while it draws
    visit.page.click("#generate")
    visit.wait_for_text("#status", "done in")
    for summary in visit.page.locator("summary").all():
        summary.click()
    assert findings(visit) == []  # with everything open, and the player
    visit.page.focus("#drawing summary")
    for key in ("Tab", " ", "ArrowLeft", "ArrowLeft"):
        visit.page.keyboard.press(key)
    visit.page.click("#finish")
    visit.wait_for_text("#status", "finished")
    assert findings(visit) == []
    visit.page.click("#burst")
    visit.page.wait_for_selector(".tile.done >> nth=15")
    assert findings(visit) == []
    visit.page.click(".tile >> nth=0")
    assert findings(visit) == []  # with a dialog
    visit.page.click("#details-close")
    visit.answer("generate", 503, problem(503, "the device is busy"))
    visit.page.fill("#burst-size", "2")
    visit.page.click("#burst")
    visit.page.wait_for_selector(".tile.failed >> nth=1")
    assert findings(visit) == []
    context.close()


def test_axe_finds_an_image_without_a_text(visit: Visit) -> None:
    visit.draw()
    visit.page.evaluate("() => document.querySelector('.card img').removeAttribute('alt')")
    assert [finding.partition(":")[0] for finding in findings(visit)] == ["image-alt"]

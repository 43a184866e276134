"""The page in a real browser; the server and its models are real, too."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.settings import ModelEntry, Settings
from tests.service.conftest import Running, running
from tests.waiting import wait_until

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
CHOICE = "#class=dog&seed=5&steps=6&sampler=ddim&guidance=2"


class Visit:
    """A page with what it asked for and what it complained of."""

    def __init__(self, page: Any, url: str):
        self.page, self.url = page, url
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        page.set_default_timeout(60_000)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, choice: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/{choice}")
        self.page.wait_for_selector("[data-model]")

    def wait_for_pictures(self, seed: int) -> None:
        for model in ("dit", "unet"):
            self.page.wait_for_selector(f"[data-model={model}][data-done='{seed}']")

    def picture(self, model: str) -> np.ndarray:
        source = self.page.locator(f"[data-model={model}] img").get_attribute("src")
        return decoded(base64.b64decode(source.partition(",")[2]))


def decoded(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET), timeout=120_000)


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    yield Visit(context.new_page(), server.url)
    context.close()


@needs_browser
def test_both_models_draw_what_generate_draws(visit: Visit, server: Running) -> None:
    visit.open(CHOICE)
    visit.wait_for_pictures(5)
    for model in ("dit", "unet"):
        query = {"model": model, "class": "dog", "seed": 5, "steps": 6, "sampler": "ddim", "guidance": 2}
        expected = decoded(server.client.post("/generate", params=query).content)
        assert np.abs(visit.picture(model).astype(int) - expected).max() <= 1
        assert (
            visit.page.locator(f"[data-model={model}] .download").get_attribute("href").startswith("data:image/png")
        )
    assert "done in" in visit.page.inner_text("#status")
    assert visit.hosts == {urlsplit(server.url).netloc}  # and nobody else
    assert visit.complaints == []


@needs_browser
def test_the_address_holds_the_choice_and_the_command_says_it(visit: Visit) -> None:
    visit.open(CHOICE)
    visit.wait_for_pictures(5)
    visit.page.fill("#seed", "6")
    visit.page.get_by_role("radio", name="cat").check(force=True)
    visit.page.click("#generate")
    visit.wait_for_pictures(6)
    picture = visit.picture("dit")
    address = visit.page.url
    assert "seed=6" in address
    assert "class=cat" in address
    assert "seed=6" in visit.page.text_content("#curl")
    visit.open(address[address.index("#") :])
    visit.wait_for_pictures(6)
    assert (visit.picture("dit") == picture).all()


@needs_browser
def test_the_keyboard_is_enough(visit: Visit) -> None:
    visit.open(CHOICE)
    visit.wait_for_pictures(5)
    visit.page.focus("#seed")
    visit.page.keyboard.press("Control+a")
    visit.page.keyboard.type("77")
    visit.page.keyboard.press("Enter")
    visit.wait_for_pictures(77)
    visit.page.locator("#classes input:checked").focus()
    visit.page.keyboard.press("ArrowLeft")
    assert visit.page.locator("#classes input:checked").get_attribute("value") == "cat"
    for field in visit.page.locator("input:visible, select:visible, button:visible").all():
        assert field.evaluate("e => !!(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))")


@needs_browser
def test_a_burst_draws_many_pictures_that_agree_in_nothing(visit: Visit, server: Running) -> None:
    visit.open(CHOICE)
    visit.wait_for_pictures(5)
    before = server.metric("diffusion_images_total")
    visit.page.fill("#burst-size", "9")
    visit.page.click("#burst")
    visit.page.wait_for_selector(".tile.done >> nth=8")
    assert server.metric("diffusion_images_total") == before + 9
    assert visit.complaints == []


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1100, "light")])
def test_nothing_sticks_out(browser: Any, server: Running, width: int, scheme: str, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    visit = Visit(context.new_page(), server.url)
    visit.open(CHOICE)
    visit.wait_for_pictures(5)
    wide = visit.page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= width
    background = visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(","))
    assert (brightness > 384) == (scheme == "light")
    context.close()


@needs_browser
def test_a_refusal_is_shown_in_its_own_words(visit: Visit) -> None:
    visit.open(CHOICE)
    visit.wait_for_pictures(5)
    problem = {
        "title": "Overloaded",
        "status": 503,
        "detail": "the device is busy",
        "type": "urn:problem:overloaded",
    }
    answer = {"status": 503, "headers": {"Retry-After": "4", "Content-Type": "application/problem+json"}}
    visit.page.route("**/generate", lambda route: route.fulfill(**answer, body=json.dumps(problem)))
    visit.page.click("#generate")
    visit.page.wait_for_selector("#status.bad")
    assert visit.page.inner_text("#status") == "2 of 2 refused"
    assert visit.page.inner_text("[data-model=dit] .state") == "the device is busy (again in 4 s)"


@needs_browser
def test_simulated_models_say_so_and_stop_stops(browser: Any, checkpoints: Path) -> None:
    cost = {"t0_ms": 50, "t1_ms": 0}
    models = {
        name: ModelEntry.model_validate({"checkpoint": checkpoints / name, "simulate": cost})
        for name in ("dit", "unet")
    }
    with running(create_app(Settings(models=models, device="cpu"))) as live:
        context = browser.new_context()
        visit = Visit(context.new_page(), live.url)
        visit.open("#class=dog&seed=5&steps=100&sampler=ddim&guidance=1")
        assert visit.page.locator(".badge:visible").all_inner_texts() == ["SIMULATED", "SIMULATED"]
        visit.page.wait_for_selector("[data-model=dit] img[src]")
        visit.page.click("#stop")
        wait_until(lambda: live.metric("diffusion_running_slots") == 0)
        assert visit.page.inner_text("[data-model=dit] .state") == "stopped"
        wait_until(lambda: live.metric("diffusion_requests_total", outcome="cancelled") == 2)
        context.close()


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css", "/static/icon.svg"])
def test_the_headers_keep_everything_foreign_out(server: Running, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    again = server.client.get(path, headers={"If-None-Match": response.headers["ETag"]})
    assert again.headers["ETag"] == response.headers["ETag"]


@pytest.mark.parametrize("name", ["..%2f..%2fsettings.py", "%2e%2e/app.py", "index.html", "nope.js", "%00"])
def test_no_path_leads_out_of_the_folder(server: Running, name: str) -> None:
    assert server.client.get(f"/static/{name}").status_code == 404


def test_the_page_is_in_the_wheel() -> None:
    folder = Path(__file__).parents[2]
    assert 'package-data = { service = ["static/*"] }' in (folder / "pyproject.toml").read_text()
    text = (folder / "service/static/index.html").read_text()
    assert "http://" not in text
    assert "https://" not in text

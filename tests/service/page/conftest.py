"""A browser that visits a real server. Every test of this folder needs a chromium."""

import json
import shutil
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from service.local import create_app
from tests.checkpoints import write_checkpoint
from tests.service.conftest import Running, running, tiny_settings
from tests.service.pictures import decoded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
CHOICE = "#class=dog&seed=5&steps=6&sampler=ddim&guidance=2"
SKY = ["golden sunset", "rain", "fog over the sea", "snow", "hail", "storm", "mist", "clear", "cloudy", "night"]
NAMES = ("dit", "unet")


class Visit:
    """A page with what it asked for and what it complained of."""

    def __init__(self, page: Any, url: str):
        self.page, self.url = page, url
        self.hosts: set[str] = set()
        self.asked: list[dict[str, Any]] = []  # bodies of POST /generate
        self.complaints: list[str] = []
        page.set_default_timeout(60_000)
        page.on("request", self._note)
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, request: Any) -> None:
        self.hosts.add(urlsplit(request.url).netloc)
        if request.url.endswith("/generate"):
            self.asked.append(request.post_data_json)

    def open(self, choice: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/{choice}")
        self.page.wait_for_selector("[data-model]")

    def draw(self, choice: str = CHOICE, seed: int = 5) -> None:
        self.open(choice)
        self.wait_for_pictures(seed)
        self.wait_for_text("#status", "done in")

    def wait_for_pictures(self, seed: int, models: tuple[str, ...] = NAMES) -> None:
        for model in models:
            self.page.wait_for_selector(f"[data-model={model}][data-done='{seed}']")

    def wait_for_text(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).wait_for()

    def picture(self, model: str) -> np.ndarray:
        return shown(self.page.locator(f"[data-model={model}] img"))

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def answer(
        self, path: str, status: int, body: dict[str, Any], times: int | None = None, retry_after: int | None = None
    ) -> None:
        """Answer in place of the service."""
        headers = {"Content-Type": "application/problem+json"}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        answer = {"status": status, "headers": headers, "body": json.dumps(body)}
        self.page.route(f"**/{path}", lambda route: route.fulfill(**answer), times=times)


def shown(image: Any) -> np.ndarray:
    """The pixels of an <img> whose address is its data."""
    return decoded(image.get_attribute("src").partition(",")[2])


def problem(status: int, detail: str) -> dict[str, Any]:
    return {"type": "urn:problem:x", "title": "X", "status": status, "detail": detail}


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    if sys.platform == "linux" and find_library("atomic") is None:  # playwright's own node needs it
        pytest.skip("needs libatomic1")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET), timeout=120_000)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two models of one class list with defaults of their own, and a third that shares no class with them."""
    folder = tmp_path_factory.mktemp("page")
    write_checkpoint(folder / "dit", "dit", sampling={"steps": 8, "guidance": 1.5})
    write_checkpoint(folder / "unet", "unet", sampling={"steps": 8, "guidance": 1.4})
    write_checkpoint(folder / "sky", "dit", class_names=SKY, sampling={"steps": 8})
    with running(create_app(tiny_settings(folder))) as live:
        yield live


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    yield Visit(context.new_page(), server.url)
    context.close()

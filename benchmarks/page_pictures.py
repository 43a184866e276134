"""Takes the pictures of the service's page in docs/: an image with its steps, and a burst that shares forwards.

    python -m benchmarks.page_pictures

The real server runs with the shipped checkpoints, and an installed chromium visits it. The requests of a burst are
random, so its picture is another one each time. A README shows pictures at most 830 pixels wide, where text of a
narrow window can be read.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.client import serving
from models.files import SHIPPED

DOCS = SHIPPED.parent / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEW = {"width": 920, "height": 900}  # CSS pixels
FIELDS, BURST = "#class=3&seed=7&steps=16&sampler=ddim", 16  # of a first visit; requests of the burst
SCALE = 2  # device pixels for one of CSS, because the burst shows images of 32 pixels
BURST_TIMEOUT = 120_000  # ms; a burst of 24 takes 20 s on two slow cores


def take(browser: Any, url: str, folder: Path) -> None:
    """Write page.png and burst.png into a folder.

    Args:
        browser: of playwright's synchronous API.
        url: of a service that is ready.
    """
    page = browser.new_page(viewport=VIEW, color_scheme="light")
    page.goto(f"{url}/{FIELDS}")
    page.locator("#status", has_text="done in").wait_for()
    end = page.locator("#player").bounding_box()
    whole = {"x": 0, "y": 0, "width": VIEW["width"], "height": end["y"] + end["height"] + 8}
    page.screenshot(path=folder / "page.png", full_page=True, clip=whole)
    page.close()
    page = browser.new_page(viewport=VIEW, color_scheme="light", device_scale_factor=SCALE)
    page.goto(url)
    page.locator("#burst-size").fill(str(BURST))
    page.locator("#burst").click()
    page.locator("#status", has_text="pictures in").wait_for(timeout=BURST_TIMEOUT)
    page.locator("#bursts .panel").screenshot(path=folder / "burst.png")
    page.close()
    with Image.open(folder / "burst.png") as picture:  # a palette of 256 colours: a quarter of the bytes
        small = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    small.save(folder / "burst.png", optimize=True)


def visit(url: str, folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox", "--disable-gpu"])
        take(browser, url, folder)
        browser.close()


async def main(folder: Path = DOCS) -> None:
    async with serving(checkpoints=SHIPPED) as server:
        await asyncio.to_thread(visit, f"http://127.0.0.1:{server.port}", folder)


if __name__ == "__main__":
    asyncio.run(main())

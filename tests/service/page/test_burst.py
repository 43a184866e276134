"""Bursts and their tiles."""

from pathlib import Path
from typing import Any

from tests.service.conftest import Running
from tests.service.page.conftest import Visit, problem
from tests.service.pictures import decoded, difference


def test_a_burst_draws_as_many_pictures_as_asked_for(visit: Visit, server: Running) -> None:
    visit.draw()
    before = server.metric("diffusion_images_total")
    visit.page.fill("#burst-size", "9")
    visit.page.click("#burst")
    visit.page.wait_for_selector(".tile.done >> nth=8")
    assert server.metric("diffusion_images_total") == before + 9
    assert visit.complaints == []


def test_a_bad_burst_size_is_corrected_and_the_notice_says_so(visit: Visit) -> None:
    visit.draw()
    visit.answer("generate", 422, problem(422, "no"))
    for given, sent in (("0", 1), ("2.7", 3), ("1000", 48), ("", 16)):
        visit.page.fill("#burst-size", given)
        visit.page.click("#burst")
        visit.wait_for_text("#status", f"{sent} failed")
        assert visit.page.locator(".tile").count() == sent
        said = f"Burst: {given or 'Nothing'} is not a whole number from 1 to 48; {sent} is used."
        assert visit.page.inner_text("#notice") == said
        assert visit.page.input_value("#burst-size") == str(sent)


def test_a_burst_leaves_a_connection_to_the_numbers(visit: Visit) -> None:
    """A browser opens 6 connections to a host; with all of them drawing, the strip would stand still."""
    visit.draw()
    held: list[Any] = []
    visit.page.route("**/generate", lambda route: held.append(route))
    visit.page.click("#burst")
    for _ in range(3):
        with visit.page.expect_response("**/metrics"):
            pass
    assert visit.page.locator(".tile").count() == 16
    assert len(held) == 5
    visit.page.click("#stop")
    visit.page.wait_for_selector(".tile.failed >> nth=15")
    assert len(held) == 5
    assert all("stopped" in text for text in visit.texts(".tile"))


def test_a_burst_keeps_the_picture_that_a_drawing_may_be_taken_from(visit: Visit) -> None:
    visit.draw()
    visit.page.fill("#burst-size", "2")
    visit.page.click("#burst")
    visit.wait_for_text("#status", "2 pictures in")
    below, above = (visit.page.locator(part).bounding_box()["y"] for part in ("#drawing", ".card >> nth=0"))
    assert above < below


def test_the_requests_of_a_burst_come_model_by_model(visit: Visit) -> None:
    visit.draw()
    visit.page.fill("#burst-size", "9")
    visit.page.click("#burst")
    visit.wait_for_text("#status", "9 pictures in")
    assert [body["model"] for body in visit.asked[2:]] == ["dit"] * 3 + ["sky"] * 3 + ["unet"] * 3


def test_a_failed_tile_says_why(visit: Visit) -> None:
    visit.draw()
    visit.answer("generate", 503, problem(503, "the device is busy"))
    visit.page.fill("#burst-size", "2")
    visit.page.click("#burst")
    visit.page.wait_for_selector(".tile.failed >> nth=1")
    assert all("the device is busy" in text for text in visit.texts(".tile"))
    visit.page.click(".tile >> nth=0")
    assert "the device is busy" in visit.page.inner_text("#details-text")
    assert visit.page.locator("#details-save").is_hidden()


def test_a_tile_can_be_opened_saved_and_taken_over(visit: Visit) -> None:
    visit.draw()
    visit.page.fill("#burst-size", "1")
    visit.page.press("#burst-size", "Enter")
    visit.page.locator(".tile.done").press("Enter")
    tile = visit.asked[-1]
    with visit.page.expect_download() as download:
        visit.page.click("#details-save")
    saved = decoded(Path(download.value.path()).read_bytes())
    assert download.value.suggested_filename == f"{tile['model']}-{tile['class']}-{tile['seed']}.png"
    visit.page.click("#details-use")
    visit.wait_for_pictures(tile["seed"], (tile["model"],))
    again = next(body for body in reversed(visit.asked) if body["model"] == tile["model"])
    assert again == tile
    assert difference(visit.picture(tile["model"]), saved) <= 1
    assert visit.page.locator("#details").is_hidden()

"""A drawing by hand, and what the models are asked to make of it. Pictures of the tiny models are 8 x 8."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import Running
from tests.service.page.conftest import Visit, problem, shown
from tests.service.pictures import decoded, opened
from tests.waiting import wait_until


@pytest.fixture
def desk(visit: Visit) -> Visit:
    visit.draw()
    visit.page.click("#drawing summary")
    visit.page.locator("#canvas").scroll_into_view_if_needed()
    return visit


def stroke(visit: Visit, *points: tuple[float, float]) -> None:
    """Through points in pixels of the picture."""
    box = visit.page.locator("#canvas").bounding_box()
    places = [(box["x"] + x / 8 * box["width"], box["y"] + y / 8 * box["height"]) for x, y in points]
    visit.page.mouse.move(*places[0])
    visit.page.mouse.down()
    for place in places[1:]:
        visit.page.mouse.move(*place, steps=4)
    visit.page.mouse.up()


def finish(visit: Visit) -> list[dict[str, Any]]:
    """The bodies that it sent."""
    sent = len(visit.asked)
    visit.page.click("#finish")
    wait_until(lambda: visit.page.wait_for_timeout(10) or len(visit.asked) == sent + 2)
    visit.wait_for_text("#status", "finished")
    return visit.asked[sent:]


def gray(data_url: str) -> np.ndarray:
    """[H, W] uint8."""
    return np.array(opened(data_url.partition(",")[2]).convert("L"))


def test_what_is_drawn_is_kept_and_the_rest_is_free(desk: Visit) -> None:
    stroke(desk, (1, 4.5), (7, 4.5))
    bodies = finish(desk)
    assert [body["model"] for body in bodies] == ["dit", "unet"]
    for place, body in enumerate(bodies):
        image, mask = gray(body["image"]), gray(body["mask"])
        assert image.shape == mask.shape == (8, 8)
        assert (image[4, 2:6] > 127).all()
        assert (image[0] == 0).all()
        assert ((mask == 0) == (image > 127)).all()
        assert set(np.unique(mask)) == {0, 255}
        assert body | {"image": 0, "mask": 0} == {
            "model": body["model"], "class": "dog", "seed": 5, "steps": 6, "sampler": "ddim", "guidance": 2,
            "image": 0, "mask": 0, "preview": 64,
        }  # fmt: skip
        answer = shown(desk.page.locator("#finished img").nth(place)).reshape(8, 8, -1)
        assert (answer[mask == 0] == image[mask == 0][:, None]).all()
    assert desk.texts("#finished figcaption") == ["dit 6 steps", "unet 6 steps"]
    assert desk.complaints == []


def test_a_drawing_can_be_changed_by_a_strength(desk: Visit) -> None:
    stroke(desk, (1, 4.5), (7, 4.5))
    assert desk.page.locator("#strength").is_disabled()
    desk.page.check("#start-from")
    desk.page.locator("#strength").fill("0.45")
    assert desk.page.inner_text("#strength-value") == "0.45"
    desk.page.check("#unnamed")
    for body in finish(desk):
        assert body["strength"] == 0.45
        assert "mask" not in body
        assert "class" not in body
        assert "guidance" not in body
        assert (gray(body["image"])[4, 2:6] > 127).all()


def test_a_drawing_by_keys(desk: Visit) -> None:
    desk.page.focus("#drawing summary")
    desk.page.keyboard.press("Tab")
    assert desk.page.locator("#pen-key").is_visible()
    for key in ("ArrowLeft", "ArrowLeft", " ", "ArrowRight", "ArrowRight", "ArrowRight"):
        desk.page.keyboard.press(key)
    assert desk.page.inner_text("#pen-state") == "The pen is down, in column 5 and row 4."
    desk.page.keyboard.press(" ")
    desk.page.keyboard.press("ArrowUp")
    drawn = gray(finish(desk)[0]["mask"]) == 0
    assert drawn[4, 2:6].all()
    assert not drawn[:3].any()


def test_a_finger_draws_and_does_not_scroll(browser: Any, server: Running) -> None:
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 800})
    visit = Visit(context.new_page(), server.url)
    visit.draw()
    visit.page.click("#drawing summary")
    canvas = visit.page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    assert canvas.evaluate("e => getComputedStyle(e).touchAction") == "none"
    box = canvas.bounding_box()
    visit.page.touchscreen.tap(box["x"] + box["width"] * 4.5 / 8, box["y"] + box["height"] * 4.5 / 8)
    assert (gray(finish(visit)[0]["mask"]) == 0).any()
    context.close()


def test_an_empty_canvas_is_not_sent(desk: Visit) -> None:
    sent = len(desk.asked)
    desk.page.click("#finish")
    assert desk.page.inner_text("#lacking") == "Draw something first, or take a picture."
    desk.page.click("#take")
    desk.page.click("#finish")
    desk.wait_for_text("#lacking", "Erase a part of the picture first")
    assert len(desk.asked) == sent


def test_a_taken_picture_is_completed_where_it_was_erased(desk: Visit) -> None:
    desk.page.click("#take")
    desk.page.check("#eraser")
    stroke(desk, (0, 1), (8, 1))
    body = finish(desk)[0]
    free = gray(body["mask"]) == 255
    assert free[0:2].any()
    assert not free[4:].any()
    above = desk.picture("dit").reshape(8, 8, -1)
    image = decoded(body["image"].partition(",")[2])[:, :, :3]
    assert (image[4:] == np.broadcast_to(above, (8, 8, 3))[4:]).all()
    desk.page.click("#erase")
    desk.page.click("#finish")
    assert desk.page.inner_text("#lacking") == "Draw something first, or take a picture."


def test_a_file_is_brought_to_the_size_of_the_model(desk: Visit, tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), (200, 200, 200)).save(tmp_path / "wide.png")
    desk.page.set_input_files("#file", tmp_path / "wide.png")
    desk.page.check("#start-from")
    wait_until(lambda: desk.page.evaluate("() => canvas.getContext('2d').getImageData(0, 0, 1, 1).data[3]") == 255)
    assert (gray(finish(desk)[0]["image"]) == 200).all()
    (tmp_path / "no.png").write_bytes(b"no picture")
    desk.page.set_input_files("#file", tmp_path / "no.png")
    desk.wait_for_text("#notice", "no picture that the browser can read")


def test_a_refusal_stands_below_the_frame(desk: Visit) -> None:
    stroke(desk, (1, 4.5), (7, 4.5))
    desk.answer("generate", 422, problem(422, "image: too strange"))
    desk.page.click("#finish")
    desk.wait_for_text("#status", "2 of 2 failed")
    assert desk.texts("#finished figcaption") == ["dit image: too strange", "unet image: too strange"]


@pytest.mark.parametrize("channels", [1, 4])
def test_the_canvas_has_the_size_of_its_models_or_says_why_not(
    visit: Visit, server: Running, channels: int
) -> None:
    shapes = {"dit": [3, 16, 24], "unet": [3, 8, 8], "sky": [channels, 8, 8]}
    models = [server.card(name) | {"image_shape": shape} for name, shape in shapes.items()]
    visit.answer("models", 200, {"models": models})
    visit.draw()
    visit.page.click("#drawing summary")
    size = "e => [e.width, e.height]"
    assert visit.page.locator("#canvas").evaluate(size) == [24, 16]
    assert visit.texts("#finished figcaption b") == ["dit"]  # the UNet draws pictures of another size
    visit.page.select_option("#group", label="sky")
    visit.wait_for_pictures(5, ("sky",))
    if channels == 4:
        assert visit.page.locator("#desk").is_hidden()
        assert "4 channels" in visit.page.inner_text("#no-desk")
    else:
        assert visit.page.locator("#canvas").evaluate(size) == [8, 8]

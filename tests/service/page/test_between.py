"""Rows of pictures from one class or seed to another."""

import re
from typing import Any

import numpy as np
import pytest

from tests.service.conftest import Running
from tests.service.page.conftest import Visit, shown
from tests.service.pictures import pixels
from tests.waiting import wait_until


@pytest.fixture
def way(visit: Visit) -> Visit:
    visit.draw()
    visit.page.click("#between summary")
    return visit


def lead(visit: Visit) -> list[dict[str, Any]]:
    """The bodies that it sent."""
    sent = len(visit.asked)
    visit.page.click("#draw-rows")
    wait_until(lambda: visit.page.wait_for_timeout(10) or len(visit.asked) == sent + 2)
    visit.page.locator("#status", has_text=re.compile("finished|failed")).wait_for()
    return visit.asked[sent:]


def row(visit: Visit, place: int) -> list[np.ndarray]:
    images = visit.page.locator(f"#rows figure >> nth={place}").locator("img").all()
    return [shown(image) for image in images]


def test_a_row_leads_from_the_picture_above_to_the_other_class_and_seed(way: Visit, server: Running) -> None:
    way.page.select_option("#class-to", "cat")
    way.page.fill("#seed-to", "9")
    plain = {"class": "dog", "seed": 5, "steps": 6, "sampler": "ddim", "guidance": 2}
    for place, body in enumerate(lead(way)):
        model = {"model": ["dit", "unet"][place]}
        assert body == model | plain | {"class_to": "cat", "seed_to": 9, "n": 6, "preview": 8}
        pictures = row(way, place)
        assert (pictures[0] == way.picture(model["model"])).all()
        last = server.client.post("/generate", json=model | plain | {"class": "cat", "seed": 9})
        assert (pictures[-1] == pixels(last)).all()
        assert len({picture.tobytes() for picture in pictures}) == 6
    assert way.texts("#rows figcaption") == ["dit 6 steps", "unet 6 steps"]
    assert way.complaints == []


def test_a_row_leads_away_from_a_class(way: Visit) -> None:
    way.page.select_option("#away-from", "cat")
    assert [body["negative_class"] for body in lead(way)] == ["cat", "cat"]
    assert len(row(way, 0)) == 6


def test_without_a_choice_nothing_is_sent_and_a_refusal_is_shown(way: Visit) -> None:
    sent = len(way.asked)
    way.page.click("#draw-rows")
    way.wait_for_text("#unclear", "Choose another class or seed, or a class to lead away from.")
    assert len(way.asked) == sent
    way.page.select_option("#away-from", "cat")
    way.page.locator("#guidance").fill("1")
    lead(way)
    way.wait_for_text("#rows figcaption >> nth=0", "negative_class")
    assert way.page.inner_text("#unclear") == ""


def test_another_group_offers_its_own_classes(way: Visit) -> None:
    way.page.select_option("#class-to", "cat")
    way.page.select_option("#group", "1")
    way.wait_for_text("#status", "done in")
    assert way.page.locator("#class-to").input_value() == ""
    assert "cat" not in way.texts("#class-to option")

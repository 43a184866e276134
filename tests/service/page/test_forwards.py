"""The picture of requests that share forwards, from events that a test writes and from a real burst."""

import json
from typing import Any

from tests.service.conftest import Running
from tests.service.page.conftest import Visit, problem
from tests.waiting import wait_until

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
CELLS = """model => [...document.querySelectorAll('#strips figure')]
    .filter(one => one.querySelector('b').textContent === model)
    .flatMap(one => [...one.querySelectorAll('.column')])
    .map(column => [...column.children].map(cell => cell.title))"""


def event(name: str, **data: Any) -> str:
    return f"event: image_generation.{name}\ndata: {json.dumps({'b64_json': PIXEL} | data)}\n\n"


def answer(visit: Visit, forwards: Any) -> None:
    """In place of the service: forwards(steps) gives (step, number of the forward) of every event."""

    def fulfil(route: Any) -> None:
        steps = route.request.post_data_json["steps"]
        events = [
            event("partial_image", step=step, steps=steps, forward=number)
            if step < steps
            else event("completed", steps=steps, forward=number, timings={"queue": 0, "denoise": 0})
            for step, number in forwards(steps)
        ]
        headers = {"Content-Type": "text/event-stream"}
        route.fulfill(status=200, headers=headers, body="".join(events))

    visit.page.route("**/generate", fulfil)


def burst(visit: Visit, size: int) -> list[dict[str, Any]]:
    """The bodies that it sent."""
    sent = len(visit.asked)
    visit.page.fill("#burst-size", str(size))
    visit.page.click("#burst")
    visit.wait_for_text("#status", f"{size} pictures in")
    return visit.asked[sent:]


def columns(visit: Visit, model: str) -> list[list[str]]:
    """The titles of the cells of each forward."""
    return visit.page.evaluate(CELLS, model)


def test_requests_that_share_a_forward_stand_in_one_column(visit: Visit) -> None:
    visit.draw()
    answer(visit, lambda steps: [(step, 1000 + step) for step in range(1, steps + 1)])
    asked = burst(visit, 12)
    for model in {body["model"] for body in asked}:
        steps = [body["steps"] for body in asked if body["model"] == model]
        shared = [sum(step <= one for one in steps) for step in range(1, max(steps) + 1)]
        assert [len(column) for column in columns(visit, model)] == shared
        text = visit.page.inner_text(f"#strips figure:has-text('{model}') figcaption")
        assert f"{sum(steps)} steps in {max(steps)} forwards" in text
        assert f"up to {len(steps)} request" in text
    assert {name for name in visit.texts("#samplers > span") if name} == {body["sampler"] for body in asked}
    assert visit.complaints == []


def test_cells_name_their_request_and_lanes_do_not_collide(visit: Visit) -> None:
    visit.draw()
    answer(visit, lambda steps: [(step, 7 + step) for step in range(1, steps + 1)])
    asked = burst(visit, 6)
    body = asked[0]
    title = f"{body['class']}: {body['sampler']}, step 1 of {body['steps']}, guidance {body['guidance']}"
    assert title in columns(visit, body["model"])[0]
    places = "e => [...e.children].map(cell => cell.style.gridRowStart)"
    for column in visit.page.locator(".column").all():
        rows = column.evaluate(places)
        assert len(set(rows)) == len(rows)


def test_a_cell_is_read_by_touch_and_by_keys(visit: Visit) -> None:
    visit.draw()
    answer(visit, lambda steps: [(step, 7 + step) for step in range(1, steps + 1)])
    body = burst(visit, 1)[0]
    strip = f"#strips figure:has-text('{body['model']}')"
    visit.page.click(f"{strip} .cell >> nth=2")
    of = f"{body['class']}: {body['sampler']}, step {{}} of {body['steps']}, guidance {body['guidance']}"
    said = visit.page.locator(f"{strip} [role=status]")
    assert said.inner_text() == of.format(3)
    visit.page.focus(f"{strip} .columns")
    for key, step in (("ArrowRight", 4), ("ArrowLeft", 3), ("ArrowDown", 3)):
        visit.page.keyboard.press(key)
        assert said.inner_text() == of.format(step)
    assert visit.page.locator(f"{strip} .cell img >> nth=2").get_attribute("alt") == of.format(3)


def test_a_sampler_has_one_colour(visit: Visit) -> None:
    visit.draw()
    answer(visit, lambda steps: [(steps, 7)])
    colours: dict[str, set[str]] = {}
    for _ in range(3):
        burst(visit, 12)
        for name in visit.page.locator("#samplers > span").all():
            colour = name.locator("i").get_attribute("class")
            colours.setdefault(name.inner_text(), set()).add(colour)
    assert {len(found) for found in colours.values()} == {1}
    assert len({colour for found in colours.values() for colour in found}) == len(colours)


def test_dropped_previews_and_late_events_leave_a_correct_picture(visit: Visit) -> None:
    """Under pressure the service drops previews; and two streams may overtake each other."""
    visit.draw()
    answer(visit, lambda steps: [(steps, 500 - steps)])
    asked = burst(visit, 10)
    for model in {body["model"] for body in asked}:
        steps = sorted((body["steps"] for body in asked if body["model"] == model), reverse=True)
        found = [title.split(" of ")[1].split(",")[0] for column in columns(visit, model) for title in column]
        assert found == [str(step) for step in steps]  # by number of the forward, whenever they came


def test_events_of_a_service_that_does_not_number_its_forwards_draw_no_column(visit: Visit) -> None:
    visit.draw()
    answer(visit, lambda steps: [(steps, None)])
    burst(visit, 3)
    assert visit.page.locator(".column").count() == 0
    assert visit.page.locator(".tile.done").count() == 3
    assert visit.complaints == []


def test_a_real_burst_has_a_cell_for_every_step(visit: Visit) -> None:
    visit.draw()
    asked = burst(visit, 8)
    for model in {body["model"] for body in asked}:
        cells = [title for column in columns(visit, model) for title in column]
        assert len(cells) == sum(body["steps"] for body in asked if body["model"] == model)
    visit.page.click("#generate")
    visit.wait_for_text("#status", "done in")
    assert visit.page.locator("#bursts").is_hidden()


def test_a_failed_request_gives_its_lane_back(visit: Visit, server: Running) -> None:
    models = [model for model in server.client.get("/models").json()["models"] if model["name"] == "dit"]
    visit.answer("models", 200, {"models": models})
    visit.open("#seed=5")
    visit.wait_for_text("#status", "done in")
    held: list[Any] = []
    visit.page.route("**/generate", lambda route: held.append(route))
    visit.page.fill("#burst-size", "2")
    visit.page.click("#burst")
    wait_until(lambda: visit.page.wait_for_timeout(10) or len(held) == 2)
    headers = {"Content-Type": "text/event-stream"}
    failure = f"event: error\ndata: {json.dumps(problem(500, 'not finite'))}\n\n"
    held[0].fulfill(status=200, headers=headers, body=event("partial_image", step=1, steps=2, forward=8) + failure)
    visit.page.wait_for_selector(".tile.failed")
    last = event("completed", steps=2, forward=9, timings={"queue": 0, "denoise": 0})
    held[1].fulfill(status=200, headers=headers, body=last)
    visit.page.wait_for_selector(".tile.done")
    rows = visit.page.evaluate("() => [...document.querySelectorAll('.cell')].map(cell => cell.style.gridRowStart)")
    assert rows == ["1", "1"]

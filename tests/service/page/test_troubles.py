"""Refusals, waiting, a service that is gone, and API keys."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.local import create_app
from tests.service.conftest import running, tiny_settings
from tests.service.page.conftest import CHOICE, Visit, problem
from tests.waiting import wait_until


def test_a_refusal_is_shown_in_its_own_words(visit: Visit) -> None:
    visit.draw()
    visit.answer("generate", 422, problem(422, "steps: 6 is more than this service allows, 5"))
    visit.page.click("#generate")
    visit.page.wait_for_selector("#status.bad")
    assert visit.page.inner_text("#status") == "2 of 2 failed"
    assert visit.texts("[data-model=dit] .state") == ["steps: 6 is more than this service allows, 5"]


def test_a_busy_service_is_asked_again_when_it_says(visit: Visit) -> None:
    visit.draw()
    visit.page.clock.install()
    asked = len(visit.asked)
    for status, detail in ((429, "too many at once"), (503, "the queue is full")):
        visit.answer("generate", status, problem(status, detail), times=1, retry_after=30)
    visit.page.fill("#seed", "6")
    visit.page.click("#generate")
    for detail in ("too many at once", "the queue is full"):
        visit.wait_for_text(".card .state", f"{detail} (again in 30 s)")
    assert len(visit.asked) == asked + 2
    visit.page.clock.fast_forward(60_000)
    visit.wait_for_pictures(6)
    assert len(visit.asked) == asked + 4
    visit.wait_for_text("#status", "done in")


def test_a_service_that_stays_busy_is_left_alone(visit: Visit) -> None:
    visit.draw()
    visit.page.clock.install()
    visit.answer("generate", 503, problem(503, "the queue is full"), retry_after=2)
    asked = len(visit.asked)
    visit.page.click("#generate")
    while not visit.page.locator("#status.bad").count():
        visit.page.clock.run_for(1000)
    assert visit.texts("[data-model=unet] .state") == ["the queue is full (again in 2 s)"]
    assert len(visit.asked) == asked + 10  # five attempts of each model
    visit.page.unroute_all()
    visit.answer("generate", 503, problem(503, "the device is busy"), retry_after=60)
    asked = len(visit.asked)
    visit.page.click("#generate")
    visit.wait_for_text("[data-model=dit] .state.bad", "the device is busy (again in 60 s)")
    assert len(visit.asked) == asked + 2


def test_a_page_opened_during_warm_up_goes_on_by_itself(visit: Visit) -> None:
    warming = {"status": "unavailable", "reason": "warming up"}
    held: list[Any] = []
    visit.page.route("**/readyz", lambda route: held.append(route), times=1)
    visit.answer("readyz", 503, warming, times=1)  # the route added last answers first
    visit.open(CHOICE)
    visit.wait_for_text("#status", "The service is not ready: warming up. The page goes on by itself.")
    wait_until(lambda: visit.page.wait_for_timeout(10) or bool(held))
    assert visit.asked == []  # nothing was sent to be refused
    held[0].continue_()
    visit.wait_for_pictures(5)
    assert len(visit.asked) == 2


def test_a_page_opened_while_the_checkpoints_are_read_goes_on_by_itself(visit: Visit) -> None:
    """The service lists no models yet."""
    visit.answer("models", 200, {"models": []}, times=1)
    visit.answer("readyz", 503, {"status": "unavailable", "reason": "reading checkpoints"}, times=1)
    visit.page.goto(f"{visit.url}/{CHOICE}")
    visit.wait_for_text("#status", "The service is not ready: reading checkpoints.")
    visit.wait_for_pictures(5)
    assert [text for text in visit.complaints if "503" not in text] == []


def test_a_lost_service_is_named_and_found_again(visit: Visit) -> None:
    visit.draw()
    visit.wait_for_text("#server", "rows a step")
    visit.page.route("**/*", lambda route: route.abort("connectionrefused"))
    visit.page.fill("#seed", "6")
    visit.page.click("#generate")
    visit.wait_for_text("[data-model=dit] .state", "The service does not answer")
    visit.wait_for_text("#status", "The service does not answer. The page goes on when it does.")
    visit.wait_for_text("#server", "The service does not answer.")
    assert "rows a step" not in visit.page.inner_text("#server")  # old numbers would look live
    visit.page.unroute_all()
    visit.wait_for_pictures(6)
    visit.wait_for_text("#server", "rows a step")


def test_an_answer_that_breaks_off_is_no_picture(visit: Visit) -> None:
    visit.draw()
    broken = {"status": 200, "headers": {"Content-Type": "text/event-stream"}, "body": ": nothing came\n\n"}
    visit.page.route("**/generate", lambda route: route.fulfill(**broken))
    visit.page.fill("#seed", "6")
    visit.page.click("#generate")
    visit.wait_for_text("#status", "2 of 2 failed")  # the page draws again a few times, then it stops
    visit.wait_for_text("[data-model=dit] .state.bad", "The service broke off its answer")


def test_with_keys_the_first_visit_asks_for_one(browser: Any, checkpoints: Path) -> None:
    key = "a-key-for-the-page"
    with running(create_app(tiny_settings(checkpoints, api_keys={"page": {"key": key}}))) as live:
        context = browser.new_context()
        visit = Visit(context.new_page(), live.url)
        visit.page.goto(live.url)
        visit.wait_for_text("#key-reason", "This service asks for an API key.")
        assert (
            visit.page.locator("#controls, .strip, #models-link, #metrics-link").filter(visible=True).count() == 0
        )
        visit.page.keyboard.type("not-a-key-of-this-service")  # the field has the focus
        assert urlsplit(visit.page.url).fragment == ""  # no half-filled form in the address
        visit.page.keyboard.press("Enter")
        visit.wait_for_text("#key-reason", "The service does not know this key.")
        visit.page.keyboard.type(key)
        visit.page.keyboard.press("Enter")
        visit.wait_for_text("#status", "done in")
        assert visit.page.locator("#key-form").is_hidden()
        assert visit.texts(".state.bad") == []
        visit.wait_for_text("#server", "rows a step")
        assert key not in visit.page.url
        assert visit.page.text_content("#curl").count("Bearer $API_KEY") == 2
        visit.page.reload()
        visit.wait_for_text("#status", "done in")
        assert visit.texts("footer a:visible") == ["OpenAPI"]  # a link sends no key: the others would be 401
        visit.page.click("#change-key")
        visit.wait_for_text("#key-reason", "Which API key shall this page use?")
        visit.page.keyboard.type(key)
        visit.page.keyboard.press("Enter")
        visit.wait_for_text("#status", "done in")
        context.close()

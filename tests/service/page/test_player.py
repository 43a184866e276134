"""The drawing again: slider, film, play and the animation."""

from datetime import datetime, timedelta
from typing import Any

from tests.service.page.conftest import Visit, problem


def stop_the_clock(visit: Visit) -> None:
    """From here on time passes in `run_for` only; after `install` alone it would also pass by itself."""
    visit.page.clock.install()
    visit.page.clock.pause_at(datetime.now() + timedelta(hours=1))


def sources(visit: Visit, selector: str) -> list[str]:
    return visit.page.evaluate("s => [...document.querySelectorAll(s)].map(image => image.src)", selector)


def test_the_slider_shows_every_moment_of_both_models(visit: Visit) -> None:
    visit.draw()
    last = sources(visit, ".card img")
    assert visit.page.inner_text("#moment-value") == "step 6 of 6"
    visit.page.focus("#moment")
    seen = [last]
    for step in range(5, 0, -1):
        visit.page.keyboard.press("ArrowLeft")
        assert visit.page.locator("#moment").get_attribute("aria-valuetext") == (
            f"dit step {step} of 6, unet step {step} of 6"
        )
        seen.append(sources(visit, ".card img"))
    for model in (0, 1):
        assert len({pair[model] for pair in seen}) == 6
    visit.page.keyboard.press("End")
    assert sources(visit, ".card img") == last
    assert visit.complaints == []


def test_the_film_has_at_most_eight_frames_and_marks_the_moment(visit: Visit) -> None:
    for steps, shown in ((6, "123456"), (20, ["3", "5", "8", "10", "13", "15", "18", "20"])):
        visit.draw(f"#class=dog&seed=5&steps={steps}&sampler=ddim&guidance=2")
        for model in (1, 2):
            film = f"#films > figure:nth-child({model})"
            assert visit.texts(f"{film} .film figcaption") == list(shown)
            assert visit.texts(f"{film} .now figcaption") == [str(steps)]
            images = sources(visit, f"{film} img")
            assert images[-1] == sources(visit, ".card img")[model - 1]


def test_play_goes_once_from_the_first_frame_to_the_last(visit: Visit) -> None:
    visit.draw()
    stop_the_clock(visit)
    visit.page.click("#play")
    assert visit.page.inner_text("#play") == "Pause"
    assert visit.page.inner_text("#moment-value") == "step 1 of 6"
    visit.page.clock.run_for(600_000)
    assert visit.page.inner_text("#play") == "Play"
    assert visit.page.inner_text("#moment-value") == "step 6 of 6"


def test_play_stops_where_the_reader_stops_it_and_goes_on_from_there(visit: Visit) -> None:
    visit.draw()
    stop_the_clock(visit)
    visit.page.click("#play")
    visit.page.click("#play")
    visit.page.clock.run_for(600_000)
    assert visit.page.inner_text("#moment-value") == "step 1 of 6"
    visit.page.locator("#moment").fill("3")
    visit.page.click("#play")
    assert visit.page.inner_text("#moment-value") == "step 4 of 6"
    visit.page.click("#generate")  # a new drawing ends the old one
    visit.wait_for_text("#status", "done in")
    assert visit.page.inner_text("#play") == "Play"
    assert visit.page.inner_text("#moment-value") == "step 6 of 6"


def test_models_of_different_steps_keep_pace(visit: Visit) -> None:
    """Both are half done at the same moment."""

    def change(route: Any) -> None:
        body = route.request.post_data_json
        route.continue_(post_data=body | {"steps": 4 if body["model"] == "dit" else 6})

    visit.page.route("**/generate", change)
    visit.draw("#class=dog&seed=5")
    found = set()
    visit.page.focus("#moment")
    for _ in range(8):
        found.add(visit.page.inner_text("#moment-value"))
        visit.page.keyboard.press("ArrowLeft")
    assert "dit step 4 of 4 · unet step 6 of 6" in found
    assert "dit step 2 of 4 · unet step 3 of 6" in found


def test_without_previews_there_is_one_moment(visit: Visit) -> None:
    visit.draw("#class=dog&seed=5&steps=1")
    assert visit.texts("#films .film figcaption") == ["1", "1"]
    visit.page.click("#play")
    assert visit.page.inner_text("#moment-value") == "step 1 of 1"


def test_a_first_visit_sees_many_steps_and_then_sees_them_again(visit: Visit) -> None:
    visit.open()
    visit.wait_for_text("#status", "done in")
    assert [(body["steps"], body["sampler"]) for body in visit.asked] == [(16, "ddim"), (16, "ddim")]
    assert visit.page.inner_text("#play") == "Pause"
    visit.wait_for_text("#play", "Play")
    assert visit.page.inner_text("#moment-value") == "step 16 of 16"
    visit.page.click("#defaults")
    visit.page.click("#generate")
    visit.wait_for_text("#status", "done in")
    assert "steps" not in visit.asked[-1]
    assert visit.page.inner_text("#play") == "Play"  # only the first drawing plays by itself


def test_a_first_visit_falls_back_on_the_defaults_where_so_many_steps_are_refused(visit: Visit) -> None:
    visit.answer("generate", 422, problem(422, "steps: must be a whole number from 1 to 10, not 16"), times=2)
    visit.open()
    visit.wait_for_text("#status", "done in")
    assert ["steps" in body for body in visit.asked] == [True, True, False, False]


def test_nothing_plays_by_itself_for_those_who_want_no_motion(visit: Visit) -> None:
    visit.page.emulate_media(reduced_motion="reduce")
    visit.open()
    visit.wait_for_text("#status", "done in")
    assert visit.page.inner_text("#play") == "Play"


def test_a_film_takes_as_long_as_the_reader_says(visit: Visit) -> None:
    visit.draw()
    stop_the_clock(visit)
    for length, milliseconds in (("3000", 500), ("10000", 1666)):
        visit.page.select_option("#speed", length)
        visit.page.click("#play")
        visit.page.clock.run_for(5 * milliseconds - 100)
        assert visit.page.inner_text("#moment-value") == "step 5 of 6"
        visit.page.clock.run_for(200)
        assert visit.page.inner_text("#moment-value") == "step 6 of 6"


def test_a_failed_drawing_has_no_player(visit: Visit) -> None:
    visit.draw()
    visit.answer("generate", 422, problem(422, "no"))
    visit.page.click("#generate")
    visit.wait_for_text("#status", "2 of 2 failed")
    assert visit.page.locator("#player").is_hidden()


def test_the_animation_is_asked_for_with_the_settings_of_the_picture(visit: Visit) -> None:
    visit.draw()
    headers = {"Content-Type": "image/apng"}
    visit.page.route("**/generate", lambda route: route.fulfill(status=200, headers=headers, body="moving"))
    with visit.page.expect_download() as download:
        visit.page.click("[data-model=unet] .animation")
    picture = {"model": "unet", "class": "dog", "seed": 5, "steps": 6, "sampler": "ddim", "guidance": 2}
    assert visit.asked[-1] == picture | {"format": "apng"}
    assert download.value.suggested_filename == "unet-dog-5-animation.png"


def test_a_refused_animation_says_why(visit: Visit) -> None:
    visit.draw()
    visit.answer("generate", 503, problem(503, "the device is busy"))
    visit.page.click("[data-model=dit] .animation")
    visit.wait_for_text("[data-model=dit] .state.bad", "the device is busy")

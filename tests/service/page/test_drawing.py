"""The form, its link, and the cards: what is drawn is what was asked for."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.local import create_app
from service.settings import Settings
from tests.service.conftest import Running, running
from tests.service.networks import simulated
from tests.service.page.conftest import SKY, Visit
from tests.service.pictures import difference, pixels
from tests.waiting import wait_until


def test_both_models_draw_what_generate_draws(visit: Visit, server: Running) -> None:
    visit.draw()
    for model in ("dit", "unet"):
        query = {"model": model, "class": "dog", "seed": 5, "steps": 6, "sampler": "ddim", "guidance": 2}
        expected = pixels(server.client.post("/generate", params=query))
        assert difference(visit.picture(model), expected) <= 1
        assert (
            visit.page.locator(f"[data-model={model}] .download").get_attribute("href").startswith("data:image/png")
        )
    assert visit.hosts == {urlsplit(server.url).netloc}  # and nobody else
    assert visit.complaints == []


def test_the_address_holds_the_choice_and_the_command_says_it(visit: Visit) -> None:
    visit.draw()
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


def test_the_keyboard_is_enough(visit: Visit) -> None:
    visit.draw()
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


def test_pictures_of_other_settings_are_marked(visit: Visit) -> None:
    visit.draw()
    visit.page.get_by_role("radio", name="cat").check(force=True)
    assert visit.page.locator(".card.stale").count() == 2
    assert visit.page.inner_text("#status") == "The settings have changed: press Generate."
    visit.page.get_by_role("radio", name="dog").check(force=True)
    assert visit.page.locator(".card.stale").count() == 0
    assert visit.page.inner_text("#status") == ""


def test_models_of_other_classes_form_a_group_of_their_own(visit: Visit) -> None:
    visit.draw()
    assert visit.texts("#group option") == ["dit, unet", "sky"]
    assert visit.texts("#classes label") == ["cat", "dog", "0"]
    visit.page.select_option("#group", label="sky")
    visit.page.wait_for_selector("[data-model=sky][data-done='5']")
    assert visit.texts("#classes label") == SKY
    assert visit.texts(".card .name") == ["sky"]
    visit.page.get_by_role("radio", name="golden sunset").check(force=True)
    visit.page.fill("#seed", "6")
    visit.page.click("#generate")
    visit.wait_for_pictures(6, ("sky",))
    assert visit.asked[-1]["class"] == "golden sunset"
    address = visit.page.url
    visit.open(address[address.index("#") :])
    visit.wait_for_pictures(6, ("sky",))
    assert visit.page.locator("#classes input:checked").get_attribute("value") == "golden sunset"
    assert visit.complaints == []


@pytest.mark.parametrize("kept", [("dit",), ("sky",), ("unet", "sky")])
def test_any_set_of_models_fills_the_page(visit: Visit, server: Running, kept: tuple[str, ...]) -> None:
    models = [model for model in server.client.get("/models").json()["models"] if model["name"] in kept]
    visit.answer("models", 200, {"models": models})
    visit.open("#seed=5")
    first = models[0]["name"]
    visit.wait_for_pictures(5, (first,))
    assert visit.page.locator("#group-field").is_visible() == (len(kept) > 1)
    assert ("take turns" in visit.page.inner_text("header")) == (len(kept) > 1)
    assert visit.complaints == []


def test_models_without_a_common_sampler_draw_with_their_own(visit: Visit, server: Running) -> None:
    models = [model for model in server.client.get("/models").json()["models"] if model["name"] != "sky"]
    for model, sampler in zip(models, ("dpmpp_2m", "consistency"), strict=True):
        model["samplers"] = [sampler]
        model["qualities"]["default"]["sampler"] = sampler
    visit.answer("models", 200, {"models": models})
    visit.draw("#seed=5")
    assert visit.texts("#sampler option") == ["dit dpmpp_2m, unet consistency"]
    widths = """e => [e, e.parentNode.appendChild(e.cloneNode(true))].map(
        (box, copy) => (box.style.width = copy ? "max-content" : "", box.offsetWidth))"""
    has, needs = visit.page.locator("#sampler").evaluate(widths)
    assert has >= needs


def test_a_quality_takes_the_place_of_settings(visit: Visit) -> None:
    visit.draw("#seed=5&class=cat&steps=4")
    visit.page.select_option("#quality", "draft")
    assert visit.page.inner_text("#steps-value") == "2 (draft)"
    assert "quality=draft" in visit.page.url
    assert "steps" not in visit.page.url
    visit.page.locator("#steps").fill("7")
    assert visit.texts("#quality option:checked") == ["as set here"]
    assert "quality" not in visit.page.url
    visit.draw("#seed=5&class=cat&quality=best")
    assert visit.page.inner_text("#steps-value") == "12 (best)"
    visit.draw("#seed=5&class=cat&quality=best&steps=3")
    assert "left out" in visit.page.inner_text("main")


def test_each_model_keeps_its_own_defaults_until_one_is_chosen(visit: Visit) -> None:
    visit.draw("#seed=5&class=cat")
    assert visit.page.inner_text("#guidance-value") == "dit 1.5, unet 1.4"
    assert all("guidance" not in body and "steps" not in body for body in visit.asked)
    visit.page.locator("#guidance").fill("2")
    visit.page.click("#generate")
    visit.wait_for_text("#status", "done in")
    assert [body["guidance"] for body in visit.asked[2:]] == [2, 2]
    assert "guidance=2" in visit.page.url
    visit.page.click("#defaults")
    assert "guidance" not in visit.page.url
    assert visit.page.inner_text("#guidance-value") == "dit 1.5, unet 1.4"
    visit.page.select_option("#sampler", "euler")
    assert visit.page.inner_text("#steps-value") == "as usual for euler"


def test_a_guidance_that_costs_a_second_row_says_so(visit: Visit, server: Running) -> None:
    models = [model | {"guidance_range": [1, 3]} for model in server.client.get("/models").json()["models"]]
    visit.answer("models", 200, {"models": models})
    visit.draw()
    for guidance, said in (("3", "3"), ("3.1", "3.1 (a second row each step)"), ("1", "1 (off)")):
        visit.page.locator("#guidance").fill(guidance)
        assert visit.page.inner_text("#guidance-value") == said


def test_a_seed_is_asked_for_where_there_is_none(visit: Visit) -> None:
    visit.draw()
    sent = len(visit.asked)
    visit.page.fill("#seed", "")
    visit.page.click("#generate")
    assert visit.page.inner_text("#status") == "Seed: a whole number from 0 to 9007199254740991 is needed."
    assert len(visit.asked) == sent
    visit.page.fill("#seed", "5")
    assert visit.page.inner_text("#status") == ""


BAD_LINKS = {
    "#model=lion&class=tiger&seed=-5&steps=2.7&sampler=zzz&guidance=much&stepz=4": [
        "“stepz”: there is no such setting.",
        "Model: there is no “lion” here.",
        "Class: there is no “tiger” here; “cat” is used.",
        "Seed: -5 is not a whole number from 0 to 9007199254740991; 0 is used.",
        "Steps: 2.7 is not a whole number from 1 to 100; 3 is used.",
        "Guidance: much is not a number from 0 to 8; the default is used.",
        "Sampler: there is no “zzz” here; the default is used.",
    ],
    "#seed=&steps=4000&guidance=-1": [
        "Seed: Nothing is not a whole number from 0 to 9007199254740991;",
        "Steps: 4000 is not a whole number from 1 to 100; 100 is used.",
        "Guidance: -1 is not a number from 0 to 8; 0 is used.",
    ],
}


@pytest.mark.parametrize("link", BAD_LINKS)
def test_a_bad_link_draws_and_says_what_it_left_out(visit: Visit, link: str) -> None:
    visit.open(link)
    visit.wait_for_text("#status", "done in")
    said = visit.page.inner_text("#notice")
    assert [sentence for sentence in BAD_LINKS[link] if sentence not in said] == []
    assert said.count(";") == str(BAD_LINKS[link]).count(";")
    visit.page.locator("#steps").fill("4")
    assert visit.page.locator("#notice").is_hidden()


def test_a_link_opened_in_the_same_tab_is_drawn(visit: Visit) -> None:
    visit.draw()
    visit.page.evaluate("() => (location.hash = '#class=cat&seed=9&steps=4')")
    visit.wait_for_pictures(9)
    assert {body["class"] for body in visit.asked[2:]} == {"cat"}


def test_simulated_models_say_so_and_stop_stops(browser: Any, checkpoints: Path) -> None:
    models = {name: simulated(checkpoints / name, 50) for name in ("dit", "unet")}
    with running(create_app(Settings(models=models, device="cpu", max_rows=2))) as live:
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

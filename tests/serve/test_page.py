"""The page in a real browser. Skipped, with the reason, where no Chromium is found.

PUMA_CHROMIUM names one, which then has to be there; else Playwright's own is taken, else one on the path.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search_world import picture
from tests.serve.conftest import RED, Served, serving

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; make install brings it")
expect = sync_api.expect

CARDS = "#results .card:not(.example)"
PICTURES = "label[data-kind=image]"
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        found = [playwright.chromium.executable_path]
        found += [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
        path = os.environ.get("PUMA_CHROMIUM") or next((one for one in found if one and Path(one).is_file()), None)
        if path is None:
            pytest.skip("no Chromium here: install the package chromium, or name one in PUMA_CHROMIUM")
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


def opened(browser: sync_api.Browser, server: Served, path: str = "", **options) -> sync_api.Page:
    """The page, which must neither complain nor ask anybody but its own server."""
    page = browser.new_page(**({"viewport": {"width": 1280, "height": 860}} | options))
    page.strangers, page.complaints = [], []
    page.on("request", lambda one: one.url.startswith((server.url, "blob:")) or page.strangers.append(one.url))
    page.on("pageerror", lambda one: page.complaints.append(str(one)))
    page.on("console", lambda one: page.complaints.append(one.text) if "Security Policy" in one.text else None)
    page.goto(f"{server.url}/{path}")
    return page


def close(page: sync_api.Page) -> None:
    """Ends a visit that went well."""
    assert (page.strangers, page.complaints) == ([], [])
    page.close()


def loaded(page: sync_api.Page) -> int:
    """How many of the results' pictures are really there, once all have come."""
    shown = page.locator("#results img").all()
    for one in shown:
        one.scroll_into_view_if_needed()
        expect(one).to_have_js_property("complete", True)
    return sum(one.evaluate("one => one.naturalWidth > 0") for one in shown)


def first_shows(image_id: str) -> str:
    """Selects the first result's picture, if it is this one."""
    return f"li:first-child .card:not(.example) img[src$='{image_id}']"


def test_words_find_pictures_and_a_picture_finds_its_neighbours(browser, server: Served):
    page = opened(browser, server)
    page.wait_for_selector(".card.example")
    page.fill("#text", "something red")
    page.click(PICTURES)
    page.wait_for_selector(CARDS)
    assert page.locator(CARDS).count() == loaded(page) == 12
    assert re.fullmatch(r"12 pictures in \d+ ms.*", page.text_content("#status"))
    scores = [float(one) for one in page.locator(".score").all_text_contents()]
    assert scores == sorted(scores, reverse=True)

    clicked = page.locator(CARDS).nth(3).get_attribute("data-id")
    with page.expect_response("**/search") as answer:
        page.locator(CARDS).nth(3).click()
    expect(page.locator(CARDS).first).to_have_attribute("data-id", clicked)
    best = answer.value.json()["results"][0]
    assert (best["id"], round(best["score"], 2)) == (clicked, 1.0)
    assert page.is_visible("#chip") and page.input_value("#text") == ""

    page.go_back()
    expect(page.locator("#text")).to_have_value("something red")
    close(page)


def test_a_picture_of_ones_own_is_chosen_dropped_and_pasted(browser, server: Served):
    page = opened(browser, server)
    page.wait_for_selector(".card.example")
    page.click(PICTURES)
    page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": RED.bytes})
    expect(page.locator(first_shows(RED.image_id))).to_be_visible()
    assert page.locator(".score").first.text_content() == "1.000"

    for colour, event in (("green", "drop"), ("blue", "paste")):
        page.evaluate(
            """([bytes, event]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
                const init = {bubbles: true, cancelable: true};
                dispatchEvent(event === "drop" ? new DragEvent("drop", {...init, dataTransfer: data})
                                               : new ClipboardEvent("paste", {...init, clipboardData: data}));
            }""",
            [list(picture(colour).bytes), event],
        )
        expect(
            page.locator(f"li:first-child .card:not(.example) img[src$='{picture(colour).image_id}']")
        ).to_be_visible()
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("#status.bad")
    assert "unknown format" in page.text_content("#status")
    close(page)


def test_the_keyboard_alone_is_enough(browser, server: Served):
    page = opened(browser, server)
    page.wait_for_selector(".card.example")
    page.keyboard.press("/")
    page.keyboard.type("red")
    page.keyboard.press("Tab")  # to Picture
    page.keyboard.press("Tab")  # to Search
    page.keyboard.press("Enter")
    page.wait_for_selector(CARDS)
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.locator(CARDS).nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#chip")).to_be_visible()
    expect(page.locator(CARDS).first).to_be_focused()  # the neighbours have come
    page.keyboard.press("Escape")
    page.wait_for_selector(".card.example")
    expect(page.locator("#text")).to_be_focused()
    close(page)


def test_teacher_and_student_stand_side_by_side(browser, server: Served):
    page = opened(browser, server, "?q=red&want=image&compare=1")
    page.wait_for_selector(".pair")
    assert page.locator(".student .card").count() == page.locator(".teacher .card").count() == 12
    assert re.search(r"12 of 12 pictures in common", page.text_content("#status"))
    assert "2 layers" in page.text_content(".teacher .size") and "1 layers" not in page.text_content(".teacher .size")
    places = {one.get_attribute("data-id"): at + 1 for at, one in enumerate(page.locator(".teacher .card").all())}
    for card in page.locator(".student .card").all():
        assert card.locator(".also").text_content() == f"teacher {places[card.get_attribute('data-id')]}"
    close(page)


def test_a_phone_shows_it_all_without_sideways_scrolling(browser, server: Served):
    page = opened(browser, server, "?q=red&want=image", viewport={"width": 360, "height": 740}, has_touch=True)
    page.wait_for_selector(CARDS)
    loaded(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [one.bounding_box() for one in page.locator(CARDS).all()[:2]]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["width"] > 150
    small = page.evaluate(
        "[...document.querySelectorAll('button, .kinds span')].filter(one => one.offsetHeight && one.id !== 'remove'"
        " && one.offsetHeight < 34).length"
    )
    assert small == 0
    page.check("#compare", force=True)
    page.wait_for_selector(".pair")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".student .card").first.tap()
    page.wait_for_selector("#chip:not([hidden])")
    close(page)


def test_markup_in_texts_is_shown_and_not_run(browser, server: Served, monkeypatch):
    evil = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    search_many = server.engine.student.search_many

    def poisoned(queries, k):
        from dataclasses import replace

        other = {"id": evil, "text": evil, "metadata": {evil: evil, "price": 3}}
        return [[replace(one, **other) for one in found] for found in search_many(queries, k)]

    monkeypatch.setattr(server.engine.student, "search_many", poisoned)
    page = opened(browser, server, "?q=red")
    page.wait_for_selector(CARDS)
    assert page.locator(".words").first.text_content() == evil
    assert page.locator(".facts").first.text_content() == f"{evil}: {evil} · price: 3"
    assert page.title() == "Puma search"
    close(page)


def test_a_locked_server_asks_for_the_token_and_then_shows_everything(browser, world):
    with serving(world.source, token=TOKEN) as locked:
        page = opened(browser, locked)
        page.wait_for_selector("#door[open]")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#door[open]")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector(".card.example")
        page.fill("#text", "red")
        page.click(PICTURES)
        page.wait_for_selector(CARDS)
        assert loaded(page) == 12
        close(page)
